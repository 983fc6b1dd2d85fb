// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

// What goes into a network and comes out of it, its numbers in row order.
struct Tensor {
    std::vector<std::int64_t> shape;
    std::variant<std::vector<float>, std::vector<std::uint8_t>, std::vector<std::int32_t>> values;
};
