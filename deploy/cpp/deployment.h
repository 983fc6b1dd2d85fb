// SPDX-License-Identifier: Apache-2.0
// What deploy.yaml says about the network beside it, and what that means for an image and an answer.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "image.h"
#include "tensor.h"

struct Deployment {
    std::vector<std::filesystem::path> files;  // of the format chosen, the program first
    bool takes_bytes = false;                  // the image as it is, uint8; else float32, normalised
    bool channels_last = false;                // NHWC, else NCHW
    std::array<double, 3> factor{1, 1, 1}, offset{0, 0, 0};  // what goes in is factor * pixel + offset
    std::optional<int> height, width;                        // where only one size fits
    int min_side = 1;                                        // of an image
    std::vector<Color> colors;                               // 256, by class
};

// Of the formats that an engine reads, the first that is there. Problem if deploy.yaml or a file is missing,
// damaged, or asks for what this program cannot do.
Deployment read_deployment(const std::filesystem::path& folder, const std::vector<std::string>& formats,
                           const std::string& precision, const std::string& engine);

// The image as the network takes it. Problem if its size does not fit.
Tensor input_of(const Image& image, const Deployment& deployment);

// The class of every pixel, of classes, int32 [1, H, W], or the largest of scores, float32 [1, K, H, W].
std::vector<std::uint8_t> labels_of(const Tensor& answer, const Image& image);
