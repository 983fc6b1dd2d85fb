// SPDX-License-Identifier: Apache-2.0
#include "deployment.h"

#include <openssl/evp.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>

#include "problem.h"

namespace fs = std::filesystem;

namespace {

constexpr std::uintmax_t MAX_DESCRIPTION = 1 << 16, MAX_MODEL = std::uintmax_t{1} << 36;  // bytes

std::string sha256(const std::vector<std::uint8_t>& data) {
    std::array<std::uint8_t, EVP_MAX_MD_SIZE> digest;
    unsigned length = 0;
    if (!EVP_Digest(data.data(), data.size(), digest.data(), &length, EVP_sha256(), nullptr)) {
        throw Problem("OpenSSL cannot compute SHA-256 here");
    }
    std::string text;
    for (unsigned i = 0; i < length; ++i) {
        constexpr char DIGITS[] = "0123456789abcdef";
        text += {DIGITS[digest[i] >> 4], DIGITS[digest[i] & 15]};
    }
    return text;
}

struct FileSet {
    std::string format, precision;
    std::vector<std::string> files;
};

std::vector<FileSet> file_sets(const YAML::Node& deploy) {
    std::vector<FileSet> sets;
    for (const auto& entry : deploy["formats"]) {
        sets.push_back({entry["format"].as<std::string>(), entry["precision"].as<std::string>(),
                        entry["files"].as<std::vector<std::string>>()});
    }
    // Exports of before there were several formats.
    if (sets.empty()) {
        sets.push_back(
            {"paddle", "fp32", {deploy["model"].as<std::string>(), deploy["params"].as<std::string>()}});
    }
    return sets;
}

const FileSet* choose(const std::vector<FileSet>& sets, const std::vector<std::string>& formats,
                      const std::string& precision, const std::string& engine) {
    for (const auto& format : formats) {
        for (const auto& set : sets) {
            if (set.format != format || set.precision != precision || set.files.empty()) continue;
            // OpenVINO reads Paddle's programs of the old form alone.
            if (engine == "openvino" && fs::path(set.files.front()).extension() == ".json") continue;
            return &set;
        }
    }
    return nullptr;
}

using Digests = std::map<std::string, std::string>;  // by name of the file

void check_file(const fs::path& path, const Digests& digests) {
    const std::vector<std::uint8_t> content = read_file(path, MAX_MODEL);
    const auto digest = digests.find(path.filename().string());
    // Engines run what is left of a file that is damaged.
    if (digest != digests.end() && sha256(content) != digest->second) {
        throw Problem(
            path.string() +
            ": expected the file that export.py wrote, found another or a damaged one; export again");
    }
}

void read_normalisation(const YAML::Node& deploy, Deployment& found) {
    const YAML::Node transforms = deploy["transforms"];
    if (!transforms.size()) return;
    if (transforms.size() > 1 || transforms[0]["type"].as<std::string>() != "Normalize" ||
        found.takes_bytes) {
        throw Problem(
            "its transforms are more than Normalize, which is all that this program does to an image; "
            "export with a recipe whose val_dataset does the same");
    }
    const YAML::Node normalize = transforms[0];
    const std::array<double, 3> half{0.5, 0.5, 0.5};
    const auto mean = normalize["mean"].as<std::array<double, 3>>(half);
    const auto std = normalize["std"].as<std::array<double, 3>>(half);
    const auto divisor = deploy["pixel_divisor"].as<double>(255);
    for (int channel = 0; channel < 3; ++channel) {
        found.factor[channel] = 1 / (divisor * std[channel]);
        found.offset[channel] = -mean[channel] / std[channel];
    }
}

std::optional<int> side(const YAML::Node& node) {
    return node.IsNull() ? std::nullopt : std::optional<int>(node.as<int>());
}

Deployment parsed(const YAML::Node& deploy, const fs::path& folder, const std::vector<std::string>& formats,
                  const std::string& precision, const std::string& engine) {
    const std::vector<FileSet> sets = file_sets(deploy);
    const FileSet* const chosen = choose(sets, formats, precision, engine);
    if (!chosen) {
        std::string there;
        for (const auto& set : sets)
            there += (there.empty() ? "" : ", ") + set.format + " in " + set.precision;
        throw Problem("it has no format that " + engine + " reads in " + precision + ", only " + there +
                      "; choose another engine or precision, or export what is missing, too");
    }

    Deployment found;
    for (const auto& name : chosen->files) {
        if (fs::path(name).filename() != name || name == "." || name == "..") {
            throw Problem("it names " + name + ", which is not a file beside it; export again");
        }
        found.files.push_back(folder / name);
    }

    if (deploy["channel_order"].as<std::string>("RGB") != "RGB") {
        throw Problem("its images are not RGB, and this program reads no others; use deploy/python/infer.py");
    }
    found.takes_bytes = deploy["input_dtype"].as<std::string>("float32") == "uint8";
    found.channels_last = deploy["input_layout"].as<std::string>("NCHW") == "NHWC";
    read_normalisation(deploy, found);

    const YAML::Node shape = deploy["input_shape"];
    if (shape.size() != 4) throw Problem("its input_shape should be four sides; export again");
    const int rows = found.channels_last ? 1 : 2;
    found.height = side(shape[rows]);
    found.width = side(shape[rows + 1]);
    found.min_side = deploy["min_size"].as<int>(1);

    const auto given =
        deploy["class_colors"].as<std::vector<std::vector<int>>>(std::vector<std::vector<int>>());
    std::vector<Color> colors;
    for (const auto& color : given) {
        if (color.size() != 3) throw Problem("its class_colors should be red, green and blue; export again");
        colors.push_back({static_cast<std::uint8_t>(color[0]), static_cast<std::uint8_t>(color[1]),
                          static_cast<std::uint8_t>(color[2])});
    }
    found.colors = palette(colors);
    return found;
}

}  // namespace

Deployment read_deployment(const fs::path& folder, const std::vector<std::string>& formats,
                           const std::string& precision, const std::string& engine) {
    const fs::path path = folder / "deploy.yaml";
    const auto text = read_file(path, MAX_DESCRIPTION);
    Deployment found;
    Digests digests;
    try {
        const YAML::Node deploy = YAML::Load(std::string(text.begin(), text.end()))["Deploy"];
        found = parsed(deploy, folder, formats, precision, engine);
        digests = deploy["sha256"].as<Digests>(Digests());
    } catch (const YAML::Exception& error) {
        const std::string place =
            error.mark.is_null() ? "" : " in line " + std::to_string(error.mark.line + 1);
        throw Problem(path.string() + ": expected what export.py writes, found something else" + place +
                      "; export again");
    } catch (const Problem& problem) {
        throw Problem(path.string() + ": " + problem.what());
    }

    for (const fs::path& file : found.files) check_file(file, digests);
    return found;
}

Tensor input_of(const Image& image, const Deployment& deployment) {
    if (std::min(image.width, image.height) < deployment.min_side) {
        throw Problem("expected an image of at least " + std::to_string(deployment.min_side) +
                      " pixels a side, found " + image.size() + "; enlarge it");
    }
    if (image.height != deployment.height.value_or(image.height) ||
        image.width != deployment.width.value_or(image.width)) {
        const auto shown = [](std::optional<int> side) { return side ? std::to_string(*side) : "any"; };
        throw Problem("the network takes images of " + shown(deployment.width) + "x" +
                      shown(deployment.height) + " pixels, found " + image.size() +
                      "; resize it, or export without --input_shape");
    }

    Tensor input;
    input.shape = deployment.channels_last ? std::vector<std::int64_t>{1, image.height, image.width, 3}
                                           : std::vector<std::int64_t>{1, 3, image.height, image.width};
    const std::size_t pixels = image.rgb.size() / 3;
    const std::size_t pixel_step = deployment.channels_last ? 3 : 1;
    const std::size_t channel_step = deployment.channels_last ? 1 : pixels;
    const auto lay_out = [&](auto values, const auto& prepare) {
        values.resize(image.rgb.size());
        for (std::size_t channel = 0; channel < 3; ++channel) {
            for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
                values[channel * channel_step + pixel * pixel_step] =
                    prepare(image.rgb[3 * pixel + channel], channel);
            }
        }
        input.values = std::move(values);
    };

    if (deployment.takes_bytes) {
        lay_out(std::vector<std::uint8_t>(), [](std::uint8_t value, std::size_t) { return value; });
    } else {
        lay_out(std::vector<float>(), [&](std::uint8_t value, std::size_t channel) {
            return static_cast<float>(deployment.factor[channel] * value + deployment.offset[channel]);
        });
    }
    return input;
}

std::vector<std::uint8_t> labels_of(const Tensor& answer, const Image& image) {
    const std::size_t pixels = image.rgb.size() / 3;
    const auto& shape = answer.shape;
    if (shape.size() < 3 || shape[0] != 1 || shape[shape.size() - 2] != image.height ||
        shape.back() != image.width) {
        throw Problem("the network's answer has another size than the image; export again");
    }

    std::vector<std::uint8_t> labels(pixels);
    const auto* classes = std::get_if<std::vector<std::int32_t>>(&answer.values);
    const auto* scores = std::get_if<std::vector<float>>(&answer.values);
    if (classes && shape.size() == 3 && classes->size() == pixels) {
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
            const std::int32_t label = (*classes)[pixel];
            if (label < 0 || label > 255) throw Problem("the network has more than the 256 classes of a PNG");
            labels[pixel] = static_cast<std::uint8_t>(label);
        }
    } else if (scores && shape.size() == 4 && shape[1] <= 256 && scores->size() == pixels * shape[1]) {
        std::vector<float> best(scores->begin(), scores->begin() + pixels);
        for (std::int64_t number = 1; number < shape[1]; ++number) {
            const float* const those = scores->data() + number * pixels;
            for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
                if (those[pixel] <= best[pixel]) continue;
                best[pixel] = those[pixel];
                labels[pixel] = static_cast<std::uint8_t>(number);
            }
        }
    } else {
        throw Problem(
            "the network's first output should be classes or scores of up to 256 classes; export again");
    }
    return labels;
}
