// SPDX-License-Identifier: Apache-2.0
// Of Paddle's C++ interface what deploy/cpp/engine_paddle.cpp calls, under the names and signatures of
// Paddle 3.2, for a build on the library inside the Python package, which comes without headers. Objects have
// more room than the library's own need, and are never taken down.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace paddle {

struct AnalysisConfig {
    explicit AnalysisConfig(const std::string& program, const std::string& params);
    AnalysisConfig(const AnalysisConfig& other);
    void DisableGlogInfo();
    void EnableNewExecutor(bool on = true);
    void EnableNewIR(bool on = true);
    void EnableMemoryOptim(bool on = true);
    void DeletePass(const std::string& name);
    void DisableGpu();
    void EnableONEDNN();
    void SetCpuMathLibraryNumThreads(int threads);

  private:
    char room_[1 << 14];
};

}  // namespace paddle

namespace paddle_infer {

using Config = paddle::AnalysisConfig;

enum class DataType { FLOAT32, INT64, INT32, UINT8, INT8 };

class Tensor {
  public:
    void Reshape(const std::vector<int>& shape);
    template <typename T>
    void CopyFromCpu(const T* data);
    template <typename T>
    void CopyToCpu(T* data) const;
    std::vector<int> shape() const;
    DataType type() const;
};

class Predictor {
  public:
    std::vector<std::string> GetInputNames();
    std::vector<std::string> GetOutputNames();
    std::unique_ptr<Tensor> GetInputHandle(const std::string& name);
    std::unique_ptr<Tensor> GetOutputHandle(const std::string& name);
    bool Run();
    void ClearIntermediateTensor();
};

std::shared_ptr<Predictor> CreatePredictor(const Config& config);
std::string GetVersion();

}  // namespace paddle_infer
