// SPDX-License-Identifier: Apache-2.0
#include <openvino/openvino.hpp>

#include "engine.h"

namespace {

class OpenVino final : public Engine {
  public:
    OpenVino(const std::string& model, int threads) {
        // On processors with bf16 it would compute in it without being asked.
        ov::AnyMap hints{ov::hint::inference_precision(ov::element::f32)};
        if (threads) hints.insert(ov::inference_num_threads(threads));
        ov::CompiledModel compiled = core_.compile_model(model, "CPU", hints);
        // What is no network of Paddle's is an empty one to it.
        if (compiled.inputs().size() != 1 || compiled.outputs().empty()) {
            throw std::runtime_error("it is not a network with one input");
        }
        request_ = compiled.create_infer_request();
    }

    Tensor run(const Tensor& input) override {
        const ov::Shape shape(input.shape.begin(), input.shape.end());
        std::visit(
            [&](const auto& values) {
                using Number = typename std::decay_t<decltype(values)>::value_type;
                ov::Tensor given(ov::element::from<Number>(), shape);
                std::copy(values.begin(), values.end(), given.data<Number>());
                request_.set_input_tensor(given);
            },
            input.values);
        request_.infer();

        const ov::Tensor answer = request_.get_output_tensor(0);
        const ov::Shape answered = answer.get_shape();
        Tensor output{{answered.begin(), answered.end()}, {}};
        const auto take = [&](const auto* data) {
            using Number = std::decay_t<decltype(*data)>;
            output.values = std::vector<Number>(data, data + answer.get_size());
        };
        if (answer.get_element_type() == ov::element::f32) {
            take(answer.data<const float>());
        } else {
            take(answer.data<const std::int32_t>());  // which refuses another type
        }
        return output;
    }

  private:
    ov::Core core_;
    ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const std::vector<std::filesystem::path>& files, int threads) {
    return std::make_unique<OpenVino>(files.front().string(), threads);
}
