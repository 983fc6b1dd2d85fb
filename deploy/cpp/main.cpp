// SPDX-License-Identifier: Apache-2.0
// hmsa_infer: an exported network on images, see README.md.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "deployment.h"
#include "engine.h"
#include "image.h"
#include "problem.h"

namespace fs = std::filesystem;

namespace {

constexpr char USAGE[] =
    "usage: hmsa_infer FOLDER IMAGE... --output DIR [--engine NAME] [--precision NAME] [--threads N] "
    "[--overlay]";
constexpr char HELP[] = R"(
Run a network that export.py wrote on images, PNG or JPEG.

  FOLDER            what export.py wrote: deploy.yaml and the files of one or more formats
  IMAGE             one or more images, or folders: all PNG and JPEG below
  --output DIR      where results go: DIR/pseudo_color_prediction/NAME.png, whose pixels are the classes
  --overlay         write DIR/added_prediction/NAME.png, too: the image under the colours of its classes
  --engine NAME     openvino, onnxruntime or paddle; the first that is built in if none is named
  --precision NAME  of the files: fp32 (the default), fp16 or int8
  --threads N       for the engine; without it, the engine's own choice
)";

struct Options {
    fs::path folder, output;
    std::vector<fs::path> places;  // images, and folders of them
    std::string engine, precision = "fp32";
    int threads = 0;
    bool overlay = false;
};

Options parsed(const std::vector<std::string>& arguments) {
    Options options;
    std::vector<std::string> places;
    std::set<std::string> given;
    bool only_places = false;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        std::string name = arguments[i];
        if (only_places || name.empty() || name[0] != '-') {
            places.push_back(name);
            continue;
        }
        if (name == "--") {
            only_places = true;
            continue;
        }
        if (name == "--overlay") {
            options.overlay = true;
            continue;
        }

        // Both --name value and --name=value.
        std::string value;
        const std::size_t sign = name.find('=');
        const bool has_value = sign != name.npos;
        if (has_value) {
            value = name.substr(sign + 1);
            name.resize(sign);
        }
        if (name == "--overlay") throw UsageProblem("--overlay takes no value; see --help");
        if (name != "--output" && name != "--engine" && name != "--precision" && name != "--threads") {
            throw UsageProblem("unknown option " + name + "; see --help");
        }
        if (!has_value) {
            if (++i == arguments.size()) throw UsageProblem(name + " needs a value; see --help");
            value = arguments[i];
        }
        if (!given.insert(name).second) throw UsageProblem(name + " is given twice; give it once");
        if (name == "--output") options.output = value;
        if (name == "--engine") options.engine = value;
        if (name == "--precision") options.precision = value;
        if (name == "--threads") {
            const char* const end = value.data() + value.size();
            const auto [stop, error] = std::from_chars(value.data(), end, options.threads);
            if (error != std::errc() || stop != end || options.threads < 1 || options.threads > 1024) {
                throw UsageProblem("--threads should be a number from 1 to 1024, but it is " + value);
            }
        }
    }
    if (places.size() < 2 || options.output.empty()) {
        throw UsageProblem("expected a folder, at least one image and --output DIR\n" + std::string(USAGE));
    }
    options.folder = places.front();
    options.places.assign(places.begin() + 1, places.end());
    return options;
}

const EngineRow& chosen_engine(const std::string& name) {
    std::string known;
    for (const EngineRow& row : engines()) {
        if (name.empty() ? row.open != nullptr : row.name == name) {
            if (row.open) return row;
            throw UsageProblem("this program was built without " + name + "; build it again with -D" +
                               row.option + "=...");
        }
        known += (known.empty() ? "" : ", ") + row.name;
    }
    if (name.empty())
        throw UsageProblem("this program was built without any engine; see the README beside its source");
    throw UsageProblem("--engine should be one of " + known + ", but it is " + name);
}

// A name of a file may hold what a terminal would obey.
std::string printable(std::string text) {
    for (char& letter : text) {
        if ((static_cast<unsigned char>(letter) < 32 && letter != '\n') || letter == 127) letter = '?';
    }
    return text;
}

struct Source {
    fs::path path, name;  // of an image, and of its result below a folder of results
};

std::string lower(std::string text) {
    for (char& letter : text) {
        if (letter >= 'A' && letter <= 'Z') letter += 'a' - 'A';
    }
    return text;
}

// What predict.py finds below a folder, of PNG and JPEG: sorted, without hidden files and earlier results.
std::vector<Source> images_below(const fs::path& folder) {
    std::deque<fs::path> todo{folder}, links;  // links last: files are known by the names without them
    std::set<fs::path> searched;
    std::vector<fs::path> found;
    int others = 0;
    const auto search = [&](const fs::path& here) {
        if (!searched.insert(fs::canonical(here)).second) return;
        const bool has_results = fs::exists(here / "added_prediction") ||
                                 fs::exists(here / "pseudo_color_prediction") ||
                                 fs::exists(here / ".hmsa_results");
        static const std::set<std::string> RESULTS{"added_prediction",
                                                   "pseudo_color_prediction",
                                                   "label_ids",
                                                   "sheets",
                                                   "legend",
                                                   "confidence",
                                                   "attention",
                                                   "decided",
                                                   "scales"};
        for (const auto& entry : fs::directory_iterator(here)) {
            const std::string name = entry.path().filename().string();
            const std::string suffix = lower(entry.path().extension().string());
            std::error_code nowhere;
            const bool is_folder = entry.is_directory(nowhere);
            if (name[0] == '.' || (has_results && is_folder && RESULTS.count(name))) continue;
            if (is_folder) {
                (entry.is_symlink() ? links : todo).push_back(entry.path());
            } else if (suffix == ".png" || suffix == ".jpg" || suffix == ".jpeg") {
                found.push_back(entry.path());
            } else {
                ++others;
            }
        }
    };
    for (; !todo.empty() || !links.empty();) {
        auto& next = todo.empty() ? links : todo;
        const fs::path here = next.front();
        next.pop_front();
        try {
            search(here);
        } catch (const fs::filesystem_error& error) {
            throw Problem(here.string() + ": cannot be searched (" + error.code().message() +
                          "); make it readable");
        }
    }
    if (found.empty()) throw Problem(folder.string() + ": expected PNG or JPEG below it, found none");
    std::sort(found.begin(), found.end());
    std::printf("found %zu image%s below %s", found.size(), found.size() == 1 ? "" : "s",
                printable(folder.string()).c_str());
    std::printf(others ? "; left out %d other file%s\n" : "\n", others, others == 1 ? "" : "s");

    std::map<std::string, int> wanted;
    const auto as_png = [&](const fs::path& path) {
        return path.lexically_relative(folder).replace_extension(".png");
    };
    for (const fs::path& path : found) ++wanted[lower(as_png(path).string())];
    std::vector<Source> sources;
    for (const fs::path& path : found) {
        // Beside x.png, the result of x.jpg is x.jpg.png.
        const bool is_alone =
            lower(path.extension().string()) == ".png" || wanted[lower(as_png(path).string())] == 1;
        sources.push_back({path, is_alone ? as_png(path) : path.lexically_relative(folder).concat(".png")});
    }
    return sources;
}

std::vector<Source> sources_of(const std::vector<fs::path>& places) {
    std::vector<Source> sources;
    for (const fs::path& place : places) {
        std::error_code nowhere;
        if (fs::is_directory(place, nowhere)) {
            for (auto& source : images_below(place)) sources.push_back(std::move(source));
        } else {
            sources.push_back({place, place.stem().string() + ".png"});
        }
    }
    std::map<fs::path, fs::path> taken;
    for (const auto& [path, name] : sources) {
        const auto [other, is_new] = taken.emplace(name, path);
        if (!is_new) {
            throw UsageProblem(other->second.string() + " and " + path.string() +
                               " would both be written as " + name.string() +
                               "; give them to two runs, or rename one");
        }
    }
    return sources;
}

fs::path made_folder(const fs::path& path) {
    std::error_code error;
    fs::create_directories(path, error);
    if (error)
        throw Problem(path.string() + ": cannot be made a folder (" + error.message() + "); choose another");
    return path;
}

// Engines say much: the last line that is not about a place in them is what is wrong.
std::string gist(const std::string& text) {
    std::string found;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        line.erase(0, line.find_first_not_of(" \t"));
        if (!line.empty() && line[0] != '[') found = line;
    }
    return found.substr(0, 300);
}

class Stopwatch {
  public:
    // Milliseconds since it was made or last asked.
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        return std::chrono::duration<double, std::milli>(now - std::exchange(start_, now)).count();
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void predict(const fs::path& path, const fs::path& name, Engine& engine, const Deployment& deployment,
             const Options& options) {
    Stopwatch watch;
    const Image image = read_image(path);
    const double reading = watch.lap();

    std::vector<std::uint8_t> labels;
    try {
        const Tensor input = input_of(image, deployment);
        Tensor answer;
        try {
            answer = engine.run(input);
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& error) {
            throw Problem("the network cannot run an image of " + image.size() +
                          " pixels: " + gist(error.what()));
        }
        labels = labels_of(answer, image);
    } catch (const Problem& problem) {
        throw Problem(path.string() + ": " + problem.what());
    }
    const double running = watch.lap();

    const fs::path label = options.output / "pseudo_color_prediction" / name;
    made_folder(label.parent_path());
    write_label(label, image, labels, deployment.colors);
    if (options.overlay) {
        const fs::path overlay = options.output / "added_prediction" / name;
        made_folder(overlay.parent_path());
        write_overlay(overlay, image, labels, deployment.colors);
    }
    std::printf("%s: %s pixels, read in %.1f ms, predicted in %.1f ms, written in %.1f ms\n",
                printable(path.string()).c_str(), image.size().c_str(), reading, running, watch.lap());
    std::fflush(stdout);
}

// Returns whether every image was done.
bool run(const Options& options) {
    const EngineRow& row = chosen_engine(options.engine);
    const std::vector<Source> sources = sources_of(options.places);
    const Deployment deployment = read_deployment(options.folder, row.formats, options.precision, row.name);
    made_folder(options.output / "pseudo_color_prediction");
    if (options.overlay) made_folder(options.output / "added_prediction");

    Stopwatch watch;
    std::unique_ptr<Engine> engine;
    try {
        engine = row.open(deployment.files, options.threads);
    } catch (const std::exception& error) {
        throw Problem(deployment.files.front().string() + ": " + row.name +
                      " cannot open it: " + gist(error.what()));
    }
    std::printf("%s opened %s in %.0f ms\n", row.name.c_str(),
                printable(deployment.files.front().string()).c_str(), watch.lap());

    bool all = true;
    for (const auto& source : sources) {
        const auto report = [&](const char* what) {
            std::cerr << printable("hmsa_infer: failed: " + std::string(what)) << '\n';
            all = false;
        };
        // Whatever is wrong with this image, the others can still be done.
        try {
            predict(source.path, source.name, *engine, deployment, options);
        } catch (const std::bad_alloc&) {
            report((source.path.string() + ": not enough memory for an image of its size").c_str());
        } catch (const std::exception& error) {
            report(error.what());
        }
    }
    return all;
}

void check_output() {
    if (std::fflush(stdout) || std::ferror(stdout)) {
        throw Problem(
            "expected a standard output that can be written, found one that is full or closed; free it");
    }
}

}  // namespace

int main(int count, char** values) {
    try {
        const std::vector<std::string> arguments(values + (count > 0), values + count);
        for (const auto& argument : arguments) {
            if (argument == "--help" || argument == "-h") {
                std::printf("%s\n%s", USAGE, HELP);
                check_output();
                return 0;
            }
            if (argument == "--") break;
        }
        const bool all = run(parsed(arguments));
        check_output();
        return all ? 0 : 1;
    } catch (const UsageProblem& problem) {
        std::cerr << printable("hmsa_infer: " + std::string(problem.what())) << '\n';
        return 2;
    } catch (const std::exception& error) {
        std::cerr << printable("hmsa_infer: " + std::string(error.what())) << '\n';
        return 1;
    }
}
