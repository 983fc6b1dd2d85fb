// SPDX-License-Identifier: Apache-2.0
// The engines, in one table: each is one file, engine_<name>.cpp, which is built where its library is found.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tensor.h"

class Engine {
  public:
    Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    virtual ~Engine() = default;

    // The first output for an input; throws whatever the engine throws.
    virtual Tensor run(const Tensor& input) = 0;
};

// `files` are those of one format, the program first; 0 threads are the engine's own choice.
using OpenEngine = std::unique_ptr<Engine>(const std::vector<std::filesystem::path>& files, int threads);

#ifdef HMSA_OPENVINO
OpenEngine open_openvino;
#endif
#ifdef HMSA_ONNXRUNTIME
OpenEngine open_onnxruntime;
#endif
#ifdef HMSA_PADDLE
OpenEngine open_paddle;
#endif

struct EngineRow {
    std::string name;
    std::vector<std::string> formats;  // that it reads, as deploy.yaml calls them, the best first
    OpenEngine* open;                  // nullptr: its library was not there when the program was built
    std::string option;                // of CMake, that says where its library is
};

inline const std::vector<EngineRow>& engines() {
    static const std::vector<EngineRow> table = {
#ifdef HMSA_OPENVINO
        {"openvino", {"openvino", "onnx", "paddle"}, open_openvino, "OpenVINO_DIR"},
#else
        {"openvino", {"openvino", "onnx", "paddle"}, nullptr, "OpenVINO_DIR"},
#endif
#ifdef HMSA_ONNXRUNTIME
        {"onnxruntime", {"onnx"}, open_onnxruntime, "ONNXRUNTIME_DIR"},
#else
        {"onnxruntime", {"onnx"}, nullptr, "ONNXRUNTIME_DIR"},
#endif
#ifdef HMSA_PADDLE
        {"paddle", {"paddle"}, open_paddle, "PADDLE_DIR"},
#else
        {"paddle", {"paddle"}, nullptr, "PADDLE_DIR"},
#endif
    };
    return table;
}
