// SPDX-License-Identifier: Apache-2.0
#include "deployment.h"

#include <openssl/evp.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
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

[[noreturn]] void refuse(const std::string& key, const std::string& wanted) {
    throw Problem("its " + key + " should be " + wanted + "; export again");
}

// What a key says. A fallback stands for a key that an earlier export lacks, never for a wrong value.
template <typename T, typename Check>
T value(const YAML::Node& map, const std::string& key, const std::string& wanted, const Check& is_right,
        const std::optional<T>& fallback = std::nullopt) {
    const YAML::Node node = map[key];
    if (!node.IsDefined() && fallback) return *fallback;
    try {
        // yaml-cpp makes a text of null.
        if (node.IsDefined() && !node.IsNull()) {
            const T found = node.as<T>();
            if (is_right(found)) return found;
        }
    } catch (const YAML::Exception&) {
    }
    refuse(key, wanted);
}

std::string text(const YAML::Node& map, const std::string& key,
                 const std::optional<std::string>& fallback = std::nullopt) {
    const auto is_right = [](const std::string& found) { return found.find('\0') == found.npos; };
    return value<std::string>(map, key, "a text", is_right, fallback);
}

// One of two texts, of which the first is that of earlier exports.
std::string one_of(const YAML::Node& map, const std::string& key, const std::string& first,
                   const std::string& second) {
    const auto is_right = [&](const std::string& found) { return found == first || found == second; };
    return value<std::string>(map, key, first + " or " + second, is_right, first);
}

struct FileSet {
    std::string format, precision;
    std::vector<std::string> files;
};

std::vector<FileSet> file_sets(const YAML::Node& deploy) {
    std::vector<FileSet> sets;
    const FileSet first{"paddle", "fp32", {text(deploy, "model"), text(deploy, "params")}};
    const YAML::Node formats = deploy["formats"];
    if (formats.IsDefined() && !formats.IsSequence()) refuse("formats", "a list");
    if (formats.IsDefined()) {
        for (const auto& entry : formats) {
            const std::string format = text(entry, "format");
            const std::size_t count = format == "paddle" || format == "openvino" ? 2 : 1;
            const auto is_right = [&](const std::vector<std::string>& files) {
                const auto has_nul = [](const auto& file) { return file.find('\0') != file.npos; };
                return files.size() >= count && std::none_of(files.begin(), files.end(), has_nul);
            };
            const std::string wanted = "the names of " + std::to_string(count) + " or more files";
            sets.push_back({format, text(entry, "precision"),
                            value<std::vector<std::string>>(entry, "files", wanted, is_right)});
        }
    }
    // Exports of before there were several formats.
    if (sets.empty()) sets.push_back(first);
    return sets;
}

const FileSet* choose(const std::vector<FileSet>& sets, const std::vector<std::string>& formats,
                      const std::string& precision, const std::string& engine) {
    for (const auto& format : formats) {
        for (const auto& set : sets) {
            if (set.format != format || set.precision != precision) continue;
            // OpenVINO reads Paddle's programs of the old form alone.
            if (engine == "openvino" && fs::path(set.files.front()).extension() == ".json") continue;
            return &set;
        }
    }
    return nullptr;
}

using Digests = std::map<std::string, std::string>;  // by name of the file

std::optional<Digests> read_digests(const YAML::Node& deploy) {
    // Earlier exports have neither; one that has min_size alone was cut off.
    if (!deploy["sha256"].IsDefined() && !deploy["min_size"].IsDefined()) return std::nullopt;
    return value<Digests>(deploy, "sha256", "the hashes of its files", [](const Digests&) { return true; });
}

// Engines run what is left of a file that is damaged.
void check_file(const fs::path& path, const std::optional<Digests>& digests) {
    const std::vector<std::uint8_t> content = read_file(path, MAX_MODEL);
    if (!digests) return;
    const auto digest = digests->find(path.filename().string());
    if (digest == digests->end()) {
        throw Problem(path.string() +
                      ": expected its hash in the sha256 of deploy.yaml, found none; export again");
    }
    if (sha256(content) != digest->second) {
        throw Problem(
            path.string() +
            ": expected the file that export.py wrote, found another or a damaged one; export again");
    }
}

void read_normalisation(const YAML::Node& deploy, Deployment& found) {
    const YAML::Node transforms = deploy["transforms"];
    if (!transforms.IsDefined() || !transforms.IsSequence()) refuse("transforms", "a list");
    if (!transforms.size()) return;
    if (transforms.size() > 1 || text(transforms[0], "type") != "Normalize" || found.takes_bytes) {
        throw Problem(
            "its transforms are more than Normalize, which is all that this program does to an image; "
            "export with a recipe whose val_dataset does the same");
    }
    const YAML::Node normalize = transforms[0];
    using Three = std::array<double, 3>;
    const Three half{0.5, 0.5, 0.5};
    const auto is_finite = [](double number) { return std::isfinite(number); };
    const auto is_positive = [](double number) { return std::isfinite(number) && number > 0; };
    const auto all = [](const auto& check) {
        return [&](const Three& numbers) { return std::all_of(numbers.begin(), numbers.end(), check); };
    };
    const auto mean = value<Three>(normalize, "mean", "three numbers", all(is_finite), half);
    const auto std = value<Three>(normalize, "std", "three numbers above 0", all(is_positive), half);
    const auto divisor = value<double>(deploy, "pixel_divisor", "a number above 0", is_positive, 255);
    for (int channel = 0; channel < 3; ++channel) {
        found.factor[channel] = 1 / (divisor * std[channel]);
        found.offset[channel] = -mean[channel] / std[channel];
    }
}

void read_shape(const YAML::Node& deploy, Deployment& found) {
    constexpr char WANTED[] = "four sides, each 1 or more, or null for any";
    const YAML::Node shape = deploy["input_shape"];
    if (!shape.IsDefined() || !shape.IsSequence() || shape.size() != 4) refuse("input_shape", WANTED);
    std::vector<std::optional<int>> sides;
    for (const auto& node : shape) {
        int side = 1;
        if (!node.IsNull() && (!YAML::convert<int>::decode(node, side) || side < 1))
            refuse("input_shape", WANTED);
        sides.push_back(node.IsNull() ? std::nullopt : std::optional<int>(side));
    }
    const int rows = found.channels_last ? 1 : 2;
    const auto channels = sides[found.channels_last ? 3 : 1];
    if (sides[0].value_or(1) != 1 || channels.value_or(3) != 3) {
        throw Problem(
            "its input_shape is not that of one image of three channels, and this program gives no other; "
            "use deploy/python/infer.py, or export with another --input_shape");
    }
    found.height = sides[rows];
    found.width = sides[rows + 1];
}

std::vector<Color> read_colors(const YAML::Node& deploy) {
    using Rows = std::vector<std::array<int, 3>>;
    const auto is_right = [](const Rows& rows) {
        const auto is_byte = [](int number) { return number >= 0 && number <= 255; };
        const auto is_color = [&](const auto& row) { return std::all_of(row.begin(), row.end(), is_byte); };
        return rows.size() <= 256 && std::all_of(rows.begin(), rows.end(), is_color);
    };
    const std::string wanted = "up to 256 of red, green and blue, each 0 to 255";
    std::vector<Color> colors;
    for (const auto& row : value<Rows>(deploy, "class_colors", wanted, is_right, Rows())) {
        colors.push_back({static_cast<std::uint8_t>(row[0]), static_cast<std::uint8_t>(row[1]),
                          static_cast<std::uint8_t>(row[2])});
    }
    return colors;
}

Deployment parsed(const YAML::Node& deploy, const fs::path& folder, const std::vector<std::string>& formats,
                  const std::string& precision, const std::string& engine) {
    if (!deploy.IsDefined() || !deploy.IsMap()) refuse("Deploy", "a map");
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

    if (text(deploy, "channel_order", "RGB") != "RGB") {
        throw Problem("its images are not RGB, and this program reads no others; use deploy/python/infer.py");
    }
    text(deploy, "output_op");
    text(deploy, "input_name", "x");
    found.takes_bytes = one_of(deploy, "input_dtype", "float32", "uint8") == "uint8";
    found.channels_last = one_of(deploy, "input_layout", "NCHW", "NHWC") == "NHWC";
    read_normalisation(deploy, found);
    read_shape(deploy, found);
    const auto is_side = [](int side) { return side >= 1; };
    found.min_side = value<int>(deploy, "min_size", "1 or more", is_side, 1);
    found.colors = palette(read_colors(deploy));
    return found;
}

}  // namespace

Deployment read_deployment(const fs::path& folder, const std::vector<std::string>& formats,
                           const std::string& precision, const std::string& engine) {
    const fs::path path = folder / "deploy.yaml";
    const auto text = read_file(path, MAX_DESCRIPTION);
    Deployment found;
    std::optional<Digests> digests;
    try {
        const YAML::Node deploy = YAML::Load(std::string(text.begin(), text.end()))["Deploy"];
        found = parsed(deploy, folder, formats, precision, engine);
        digests = read_digests(deploy);
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
