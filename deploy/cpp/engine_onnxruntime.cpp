// SPDX-License-Identifier: Apache-2.0
#include <onnxruntime_cxx_api.h>

#include "engine.h"

namespace {

Ort::SessionOptions options_of(int threads) {
    Ort::SessionOptions options;
    if (threads) options.SetIntraOpNumThreads(threads);
    return options;
}

class OnnxRuntime final : public Engine {
  public:
    OnnxRuntime(const std::filesystem::path& model, int threads)
        : session_(environment_, model.c_str(), options_of(threads)),
          input_(session_.GetInputNameAllocated(0, allocator_)),
          output_(session_.GetOutputNameAllocated(0, allocator_)) {}

    Tensor run(const Tensor& input) override {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const Ort::Value given = std::visit(
            [&](const auto& values) {
                using Number = typename std::decay_t<decltype(values)>::value_type;
                // It asks for numbers that it may change, and changes none of an input.
                return Ort::Value::CreateTensor<Number>(memory, const_cast<Number*>(values.data()),
                                                        values.size(), input.shape.data(),
                                                        input.shape.size());
            },
            input.values);
        const char* const input_name = input_.get();
        const char* const output_name = output_.get();
        const auto answers = session_.Run(Ort::RunOptions{nullptr}, &input_name, &given, 1, &output_name, 1);

        const Ort::Value& answer = answers.front();
        const auto about = answer.GetTensorTypeAndShapeInfo();
        Tensor output{about.GetShape(), {}};
        const auto take = [&](const auto* data) {
            using Number = std::decay_t<decltype(*data)>;
            output.values = std::vector<Number>(data, data + about.GetElementCount());
        };
        switch (about.GetElementType()) {
            case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
                take(answer.GetTensorData<float>());
                break;
            case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
                take(answer.GetTensorData<std::int32_t>());
                break;
            default:
                throw std::runtime_error("its first output is neither float32 nor int32");
        }
        return output;
    }

  private:
    Ort::Env environment_{ORT_LOGGING_LEVEL_FATAL, "hmsa_infer"};  // what fails is thrown, too
    Ort::AllocatorWithDefaultOptions allocator_;
    Ort::Session session_;
    Ort::AllocatedStringPtr input_, output_;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(const std::vector<std::filesystem::path>& files, int threads) {
    return std::make_unique<OnnxRuntime>(files.front(), threads);
}
