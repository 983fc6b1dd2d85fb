// SPDX-License-Identifier: Apache-2.0
#include "image.h"

#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>

// After <cstdio>, which it needs and does not include.
#include <jerror.h>
#include <jpeglib.h>

#include "problem.h"

namespace fs = std::filesystem;

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t MAX_PIXELS = 1024 * 1024 * 1024 / 4 / 3;  // Pillow's limit
constexpr std::uint64_t MAX_JPEG_PIXELS_PER_BYTE = 8 * 64;        // a block of 8x8 takes at least a bit

std::string reason_of_errno() {
    return std::generic_category().message(errno);
}

void check_size(std::uint64_t width, std::uint64_t height) {
    if (!width || !height || width > MAX_PIXELS || height > MAX_PIXELS || width * height > MAX_PIXELS) {
        throw Problem("its size is " + std::to_string(width) + "x" + std::to_string(height) +
                      " pixels, expected 1 to " + std::to_string(MAX_PIXELS) +
                      " pixels in all; cut it into tiles");
    }
}

// --- EXIF's orientation, 1 (upright) to 8 ---

std::optional<int> exif_orientation(const std::uint8_t* tiff, std::size_t size) {
    const bool little = size >= 8 && tiff[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | tiff[at + (little ? bytes - 1 - i : i)];
        return value;
    };
    if (size < 8 || tiff[0] != tiff[1] || (tiff[0] != 'I' && tiff[0] != 'M') || number(2, 2) != 42) return 1;

    const std::size_t start = number(4, 4);
    if (start + 2 > size) return 1;
    for (std::size_t i = 0, count = number(start, 2); i < count; ++i) {
        const std::size_t entry = start + 2 + 12 * i;
        if (entry + 12 > size) break;
        if (number(entry, 2) != 0x0112) continue;
        const std::uint32_t kind = number(entry + 2, 2);  // a byte, a short or a long, and one of it
        if ((kind != 1 && kind != 3 && kind != 4) || number(entry + 4, 4) != 1) return 1;
        const std::uint32_t value = number(entry + 8, kind == 1 ? 1 : kind == 3 ? 2 : 4);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return std::nullopt;
}

// XMP's, which counts where EXIF data have none.
int xmp_orientation(std::string_view xmp) {
    for (const std::string_view start : {"tiff:Orientation=\"", "tiff:Orientation>"}) {
        const std::size_t found = xmp.find(start);
        if (found == xmp.npos || found + start.size() >= xmp.size()) continue;
        const char digit = xmp[found + start.size()];
        return digit >= '1' && digit <= '8' ? digit - '0' : 1;
    }
    return 1;
}

Image turned(const Image& image, int orientation) {
    if (orientation == 1) return image;
    const bool swaps = orientation >= 5;
    const bool mirrors_rows = orientation == 3 || orientation == 4 || orientation >= 7;
    const bool mirrors_columns = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;

    Image result{swaps ? image.height : image.width, swaps ? image.width : image.height,
                 Bytes(image.rgb.size())};
    std::uint8_t* target = result.rgb.data();
    for (int y = 0; y < result.height; ++y) {
        for (int x = 0; x < result.width; ++x, target += 3) {
            const std::size_t row = mirrors_rows ? result.height - 1 - y : y;
            const std::size_t column = mirrors_columns ? result.width - 1 - x : x;
            const std::size_t source = swaps ? column * image.width + row : row * image.width + column;
            std::memcpy(target, image.rgb.data() + 3 * source, 3);
        }
    }
    return result;
}

// --- PNG. libpng leaves its functions by longjmp, so the functions that call it hold nothing that would be
// lost. ---

constexpr std::uint8_t PNG_START[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

struct PngReader {
    const Bytes& data;
    std::size_t at = 0;
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::string error;
    Bytes pixels;
    std::vector<png_bytep> rows;

    explicit PngReader(const Bytes& file) : data(file) {
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
        info = png ? png_create_info_struct(png) : nullptr;
        if (!info) throw std::bad_alloc();
    }
    PngReader(const PngReader&) = delete;
    ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }

    [[noreturn]] static void fail(png_structp png, png_const_charp what) {
        static_cast<PngReader*>(png_get_error_ptr(png))->error = what;
        png_longjmp(png, 1);
    }

    static void read(png_structp png, png_bytep target, std::size_t count) {
        auto& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
        if (count > reader.data.size() - reader.at) png_error(png, "it ends too early");
        std::memcpy(target, reader.data.data() + reader.at, count);
        reader.at += count;
    }

    bool read_header() {
        if (setjmp(png_jmpbuf(png))) return false;
        png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
        png_set_read_fn(png, this, read);
        png_read_info(png, info);

        png_set_palette_to_rgb(png);
        png_set_expand_gray_1_2_4_to_8(png);
        png_set_gray_to_rgb(png);
        png_set_strip_alpha(png);
        png_set_interlace_handling(png);
        png_read_update_info(png, info);
        return true;
    }

    bool read_pixels() {
        if (setjmp(png_jmpbuf(png))) return false;
        png_read_image(png, rows.data());
        png_read_end(png, nullptr);
        return true;
    }
};

int png_orientation(const Bytes& data) {
    for (std::size_t at = sizeof PNG_START; at + 12 <= data.size();) {
        const std::size_t length = png_get_uint_32(&data[at]);
        if (length > data.size() - at - 12) break;
        if (!std::memcmp(&data[at + 4], "eXIf", 4))
            return exif_orientation(&data[at + 8], length).value_or(1);
        at += 12 + length;
    }
    return 1;
}

Image decode_png(const Bytes& data) {
    PngReader reader(data);
    if (!reader.read_header()) throw Problem(reader.error);
    const std::size_t width = png_get_image_width(reader.png, reader.info);
    const std::size_t height = png_get_image_height(reader.png, reader.info);
    check_size(width, height);

    const std::size_t stride = png_get_rowbytes(reader.png, reader.info);
    reader.pixels.resize(stride * height);
    for (std::size_t row = 0; row < height; ++row) reader.rows.push_back(&reader.pixels[row * stride]);
    if (!reader.read_pixels()) throw Problem(reader.error);

    Image image{static_cast<int>(width), static_cast<int>(height), {}};
    if (png_get_bit_depth(reader.png, reader.info) == 16) {
        image.rgb.resize(3 * width * height);
        for (std::size_t i = 0; i < image.rgb.size(); ++i) {
            const unsigned value = reader.pixels[2 * i] << 8 | reader.pixels[2 * i + 1];
            image.rgb[i] = static_cast<std::uint8_t>((value + 128) / 257);
        }
    } else {
        image.rgb = std::move(reader.pixels);
    }
    return turned(image, png_orientation(data));
}

// --- JPEG: libjpeg-turbo, as in Pillow, and left by longjmp like libpng. ---

struct JpegReader {
    jpeg_error_mgr errors{};  // first, as libjpeg hands it back
    std::jmp_buf jump{};
    char error[JMSG_LENGTH_MAX] = "";
    jpeg_decompress_struct jpeg{};
    Bytes pixels;

    JpegReader() {
        jpeg.err = jpeg_std_error(&errors);
        errors.error_exit = fail;
        errors.emit_message = [](j_common_ptr common, int level) {
            // Of a file that ends too early it would make up the rest. Other warnings change nothing for
            // Pillow, either.
            if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) fail(common);
        };
    }
    JpegReader(const JpegReader&) = delete;
    ~JpegReader() { jpeg_destroy_decompress(&jpeg); }

    [[noreturn]] static void fail(j_common_ptr common) {
        auto* const reader = reinterpret_cast<JpegReader*>(common->err);
        common->err->format_message(common, reader->error);
        std::longjmp(reader->jump, 1);
    }

    bool read_header(const Bytes& data) {
        if (setjmp(jump)) return false;
        jpeg_create_decompress(&jpeg);
        jpeg_mem_src(&jpeg, data.data(), data.size());
        jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
        jpeg_read_header(&jpeg, TRUE);
        return true;
    }

    bool is_cmyk() const { return jpeg.num_components == 4; }

    bool read_pixels() {
        if (setjmp(jump)) return false;
        jpeg.out_color_space = is_cmyk() ? JCS_CMYK : JCS_RGB;
        jpeg_start_decompress(&jpeg);
        while (jpeg.output_scanline < jpeg.output_height) {
            JSAMPROW row =
                &pixels[std::size_t{jpeg.output_scanline} * jpeg.output_width * (is_cmyk() ? 4 : 3)];
            jpeg_read_scanlines(&jpeg, &row, 1);
        }
        jpeg_finish_decompress(&jpeg);
        return true;
    }

    int orientation() const {
        std::optional<int> exif;
        std::string_view xmp;
        for (auto* marker = jpeg.marker_list; marker; marker = marker->next) {
            constexpr std::string_view EXIF("Exif\0\0", 6), XMP("http://ns.adobe.com/xap/1.0/\0", 29);
            const std::string_view text(reinterpret_cast<const char*>(marker->data), marker->data_length);
            if (text.substr(0, EXIF.size()) == EXIF && !exif) {
                exif = exif_orientation(marker->data + EXIF.size(), text.size() - EXIF.size());
            } else if (text.substr(0, XMP.size()) == XMP) {
                xmp = text.substr(XMP.size());
            }
        }
        return exif ? *exif : xmp_orientation(xmp);
    }
};

// Printing colours, stored as what is left of 255 (Adobe's way), to RGB as Pillow does.
Bytes rgb_of_cmyk(const Bytes& cmyk) {
    Bytes rgb;
    rgb.reserve(cmyk.size() / 4 * 3);
    for (std::size_t i = 0; i < cmyk.size(); i += 4) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const int light = cmyk[i + 3];
            const int product = (255 - cmyk[i + channel]) * light + 128;
            rgb.push_back(static_cast<std::uint8_t>(light - ((product + (product >> 8)) >> 8)));
        }
    }
    return rgb;
}

Image decode_jpeg(const Bytes& data) {
    JpegReader reader;
    if (!reader.read_header(data)) throw Problem(reader.error);
    const std::size_t width = reader.jpeg.image_width, height = reader.jpeg.image_height;
    check_size(width, height);
    if (width * height > MAX_JPEG_PIXELS_PER_BYTE * data.size()) {
        throw Problem("its " + std::to_string(data.size()) + " bytes are too few for " +
                      std::to_string(width) + "x" + std::to_string(height) + " pixels");
    }

    const int orientation = reader.orientation();  // before the markers are forgotten
    reader.pixels.resize(width * height * (reader.is_cmyk() ? 4 : 3));
    if (!reader.read_pixels()) throw Problem(reader.error);
    Image image{static_cast<int>(width), static_cast<int>(height), {}};
    image.rgb = reader.is_cmyk() ? rgb_of_cmyk(reader.pixels) : std::move(reader.pixels);
    return turned(image, orientation);
}

// --- Writing ---

struct PngWriter {
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::string error;
    Bytes content;
    std::vector<png_bytep> rows;

    PngWriter() {
        png = png_create_write_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
        info = png ? png_create_info_struct(png) : nullptr;
        if (!info) throw std::bad_alloc();
    }
    PngWriter(const PngWriter&) = delete;
    ~PngWriter() { png_destroy_write_struct(&png, &info); }

    [[noreturn]] static void fail(png_structp png, png_const_charp what) {
        static_cast<PngWriter*>(png_get_error_ptr(png))->error = what;
        png_longjmp(png, 1);
    }

    static void write(png_structp png, png_bytep data, std::size_t count) {
        auto& content = static_cast<PngWriter*>(png_get_io_ptr(png))->content;
        content.insert(content.end(), data, data + count);
    }

    bool encode(png_uint_32 width, png_uint_32 height, const std::vector<png_color>& colors) {
        if (setjmp(png_jmpbuf(png))) return false;
        png_set_write_fn(png, this, write, nullptr);
        png_set_IHDR(png, info, width, height, 8,
                     colors.empty() ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_PALETTE, PNG_INTERLACE_NONE,
                     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
        if (!colors.empty()) png_set_PLTE(png, info, colors.data(), static_cast<int>(colors.size()));
        png_write_info(png, info);
        png_write_image(png, rows.data());
        png_write_end(png, nullptr);
        return true;
    }
};

void write_atomically(const fs::path& path, const Bytes& content) {
    const fs::path partial =
        path.parent_path() / ("." + path.filename().string() + "." + std::to_string(getpid()) + ".partial");
    std::error_code error;
    errno = 0;
    std::ofstream file(partial, std::ios::binary);
    file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    file.close();
    std::string reason = file ? "" : reason_of_errno();
    if (reason.empty()) {
        fs::rename(partial, path, error);
        if (error) reason = error.message();
    }
    if (!reason.empty()) {
        fs::remove(partial, error);
        throw Problem(path.string() + ": cannot be written (" + reason + "); choose another place");
    }
}

// `pixels` are one byte each where there are colours to a palette, else three.
void write_png(const fs::path& path, const Image& image, Bytes pixels, const std::vector<Color>& colors) {
    PngWriter writer;
    const std::size_t stride = pixels.size() / image.height;
    for (int row = 0; row < image.height; ++row) writer.rows.push_back(&pixels[row * stride]);
    std::vector<png_color> palette;
    for (const Color& color : colors) palette.push_back({color[0], color[1], color[2]});
    if (!writer.encode(image.width, image.height, palette)) {
        throw Problem(path.string() + ": cannot be written as PNG (" + writer.error + ")");
    }
    write_atomically(path, writer.content);
}

}  // namespace

std::vector<std::uint8_t> read_file(const fs::path& path, std::uintmax_t max_bytes) {
    const auto fail = [&](const std::string& reason) {
        throw Problem(path.string() + " should be a readable file, but: " + reason);
    };
    struct stat found {};
    if (stat(path.c_str(), &found)) fail(reason_of_errno());
    if (S_ISDIR(found.st_mode)) fail("it is a folder");
    if (!S_ISREG(found.st_mode)) fail("it is a pipe or a device");
    const auto size = static_cast<std::uintmax_t>(found.st_size);
    if (size > max_bytes) fail("it is longer than " + std::to_string(max_bytes) + " bytes");

    Bytes data(size);
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(size))) {
        fail(errno ? reason_of_errno() : "it became shorter while it was read");
    }
    return data;
}

Image read_image(const fs::path& path) {
    const Bytes data = read_file(path, 16 * MAX_PIXELS);
    try {
        if (data.size() > sizeof PNG_START && !std::memcmp(data.data(), PNG_START, sizeof PNG_START)) {
            return decode_png(data);
        }
        if (data.size() > 3 && data[0] == 0xFF && data[1] == 0xD8 && data[2] == 0xFF)
            return decode_jpeg(data);
    } catch (const Problem& problem) {
        throw Problem(path.string() + " should be a readable image, but: " + problem.what());
    }
    throw Problem(path.string() + " should be a PNG or a JPEG, and starts as neither; save it as a PNG");
}

std::vector<Color> palette(const std::vector<Color>& given) {
    // The bits of index + 1 are dealt out to red, green and blue in turn, from the highest bit of each down.
    std::vector<Color> colors(given);
    for (unsigned number = static_cast<unsigned>(given.size()) + 1; number <= 256; ++number) {
        Color color{};
        for (unsigned bit = 0; bit < 9; ++bit) {
            color[bit % 3] = static_cast<std::uint8_t>(color[bit % 3] | (number >> bit & 1) << (7 - bit / 3));
        }
        colors.push_back(color);
    }
    return colors;
}

void write_label(const fs::path& path, const Image& image, const Bytes& labels,
                 const std::vector<Color>& colors) {
    write_png(path, image, labels, colors);
}

void write_overlay(const fs::path& path, const Image& image, const Bytes& labels,
                   const std::vector<Color>& colors) {
    Bytes mixed(image.rgb.size());
    for (std::size_t i = 0; i < mixed.size(); ++i) {
        const int sum = 6 * image.rgb[i] + 4 * colors[labels[i / 3]][i % 3];
        mixed[i] = static_cast<std::uint8_t>((sum + 5) / 10);
    }
    write_png(path, image, std::move(mixed), {});
}
