// SPDX-License-Identifier: Apache-2.0
// Paddle Inference, 3.2 or newer, under the options of hmsa/inference/paddle_inference.py, with which it
// answers as the network does.
#include <paddle_inference_api.h>

#include <functional>
#include <numeric>
#include <thread>

#include "engine.h"

namespace {

paddle_infer::Config config_of(const std::vector<std::filesystem::path>& files, int threads) {
    paddle_infer::Config config(files.at(0).string(), files.at(1).string());
    config.DisableGlogInfo();
    // Without the first, EnableMemoryOptim ends in an error. With the second, programs of the old form are
    // opened like the others, for which Paddle has quicker passes.
    config.EnableNewExecutor(true);
    config.EnableNewIR(true);
    config.EnableMemoryOptim();
    // These mangle an OCR head written with matmul (the first .json, the second .pdmodel): wrong numbers, no
    // warning.
    config.DeletePass("reshape_transpose_matmul_fuse_pass");
    config.DeletePass("reshape_transpose_matmul_onednn_fuse_pass");
    // What it looks for is folded already, and looking for it takes half of the time of opening an old
    // program.
    config.DeletePass("conv_eltwiseadd_bn_fuse_pass");
    config.DisableGpu();
    config.EnableONEDNN();
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    config.SetCpuMathLibraryNumThreads(threads ? threads : std::max(cores, 1));  // the default is 1
    // In 3.3 this pass makes every bilinear resize fail (Paddle issues 77340 and 79749).
    if (paddle_infer::GetVersion().find("version: 3.3.") != std::string::npos)
        config.DeletePass("onednn_placement_pass");
    return config;
}

class Paddle final : public Engine {
  public:
    Paddle(const std::vector<std::filesystem::path>& files, int threads)
        : predictor_(paddle_infer::CreatePredictor(config_of(files, threads))),
          input_(predictor_->GetInputHandle(predictor_->GetInputNames().at(0))),
          output_(predictor_->GetOutputHandle(predictor_->GetOutputNames().at(0))) {}

    Tensor run(const Tensor& input) override {
        input_->Reshape(std::vector<int>(input.shape.begin(), input.shape.end()));
        std::visit([&](const auto& values) { input_->CopyFromCpu(values.data()); }, input.values);
        if (!predictor_->Run()) throw std::runtime_error("it did not run");

        const std::vector<int> shape = output_->shape();
        const auto count = std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
        Tensor output{{shape.begin(), shape.end()}, {}};
        const auto take = [&](auto values) {
            values.resize(count);
            output_->CopyToCpu(values.data());
            output.values = std::move(values);
        };
        switch (output_->type()) {
            case paddle_infer::DataType::FLOAT32:
                take(std::vector<float>());
                break;
            case paddle_infer::DataType::INT32:
                take(std::vector<std::int32_t>());
                break;
            default:
                throw std::runtime_error("its first output is neither float32 nor int32");
        }
        predictor_->ClearIntermediateTensor();
        return output;
    }

  private:
    std::shared_ptr<paddle_infer::Predictor> predictor_;
    std::unique_ptr<paddle_infer::Tensor> input_, output_;
};

}  // namespace

std::unique_ptr<Engine> open_paddle(const std::vector<std::filesystem::path>& files, int threads) {
    return std::make_unique<Paddle>(files, threads);
}
