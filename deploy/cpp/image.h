// SPDX-License-Identifier: Apache-2.0
// Images as the project reads and writes them, see hmsa/datasets/images.py and hmsa/visualize.py.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

using Color = std::array<std::uint8_t, 3>;  // red, green, blue

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // [height, width, 3]

    std::string size() const { return std::to_string(width) + "x" + std::to_string(height); }
};

// The content of an ordinary file of at most `max_bytes`.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::uintmax_t max_bytes);

// A PNG or JPEG, turned upright as its EXIF data say: grey and palette images get three channels,
// transparency is left out, 16 bits become 8 by value / 257. Problem if it is neither, is damaged, or has
// more pixels than Pillow's limit.
Image read_image(const std::filesystem::path& path);

// PaddleSeg's palette, its first colours replaced by those given.
std::vector<Color> palette(const std::vector<Color>& given);

// A file that appears complete or not at all, replacing an older one.
void write_label(const std::filesystem::path& path, const Image& image,
                 const std::vector<std::uint8_t>& labels, const std::vector<Color>& colors);
void write_overlay(const std::filesystem::path& path, const Image& image,
                   const std::vector<std::uint8_t>& labels, const std::vector<Color>& colors);
