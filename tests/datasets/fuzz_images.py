# SPDX-License-Identifier: Apache-2.0
"""Damaged, odd and hostile image files: each is read as the image and as the label of a sample.

    python tests/datasets/fuzz_images.py --count 5000 --seed 7

What a file holds is known because it was written here, or read by other means: PNG by the decoder below, JPEG and lossy
WebP by OpenCV, and what is damaged of the formats without checksums by Pillow alone. A file must be read as that or end
in one sentence that names it, in the main process and in workers, quickly, without a word on stderr and without
gigabytes. Exit status 1 if one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import resource
import socket
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import with_defaults as C

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.errors import DataError, printable
from hmsa.system.environment import prepare

SIZE = H, W = 23, 37
CLASSES, IGNORED = 19, 255
SECONDS = 30  # a file that takes longer is a hang
MEGABYTES = (
    1300  # more memory than before one file; the most pixels that are taken are 1024 of them as float32 [3, H, W]
)

Array = Optional[np.ndarray]


class Case(NamedTuple):
    """A file, and what has to come of it."""

    name: str
    content: bytes | Callable[[Path], None]  # or what makes the file
    picture: Array = None  # uint8 [H, W, 3] RGB; None: it has to be refused
    label: Array = None  # integers [H, W] as stored; None: it has to be refused
    may_fail: bool = False  # refusing is right, too
    tolerance: int = 0  # levels that decoders of the image may differ by
    ending: str = ".png"


# Writing


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(values: np.ndarray, depth: int) -> list[bytes]:
    """Rows of samples [H, W, C] as PNG and TIFF store them."""
    rows = values.reshape(len(values), -1)
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in rows]
    bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    return [np.packbits(row.ravel()).tobytes() for row in bits]


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values: np.ndarray, depth: int, color: int, *, interlaced: bool = False, before=(), after=()) -> bytes:
    """A PNG of samples [H, W, C], its chunks `before` and `after` the pixels as given."""
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    raw = b"".join(b"\0" + row for part in passes if part.size for row in packed(part, depth))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(raw, 6)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(indices: np.ndarray, palette: np.ndarray, *, runs: bool = False) -> bytes:
    """A BMP of 8 bits with a palette [256, 3]; `runs` packs it (RLE8)."""
    height, width = indices.shape
    if runs:
        rows = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in indices[::-1].tolist()]
        pixels = b"".join(rows) + b"\0\1"
    else:
        pixels = b"".join(row.tobytes().ljust((width + 3) // 4 * 4, b"\0") for row in indices[::-1].astype(np.uint8))
    colors = np.insert(palette[:, ::-1], 3, 0, axis=1).astype(np.uint8).tobytes()
    start = 14 + 40 + len(colors)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, int(runs), len(pixels), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + colors + pixels


def tiff(values: np.ndarray, bits: int, meaning: int, *, order: str = "<", kind: int = 1, turn: int = 1) -> bytes:
    """A TIFF [H, W, C] without compression, one strip; `kind` 1 unsigned, 2 signed, 3 float."""
    height, width, channels = values.shape
    if bits < 8:
        pixels = b"".join(packed(values, bits))
    else:
        letter = {1: "u", 2: "i", 3: "f"}[kind]
        pixels = values.astype(f"{order}{letter}{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: meaning, 273: 8, 274: turn, 277: channels, 278: height}
    tags |= {279: len(pixels), 339: kind}
    entries, extra, extra_at = b"", b"", 8 + len(pixels) + 2 + 12 * (len(tags) + (meaning == 3)) + 4
    shorts = {258: [bits] * channels, 339: [kind] * channels}
    if meaning == 3:
        tags[320] = 0
        shorts[320] = [value * channel % 256 * 257 for channel in (3, 5, 7) for value in range(2**bits)]
    for tag, value in sorted(tags.items()):
        if len(shorts.get(tag, ())) > 2:
            entries += struct.pack(order + "HHII", tag, 3, len(shorts[tag]), extra_at + len(extra))
            extra += struct.pack(f"{order}{len(shorts[tag])}H", *shorts[tag])
        elif tag in (273, 279):
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
        else:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(order + "H", len(tags))
    return mark + struct.pack(order + "I", 8 + len(pixels)) + pixels + count + entries + b"\0\0\0\0" + extra


def tiff_palette(indices: np.ndarray) -> np.ndarray:
    """The colours that `tiff` gives palette indices."""
    return np.stack([(indices.astype(int) * channel) % 256 for channel in (3, 5, 7)], axis=2).astype(np.uint8)


def by_pillow(image: np.ndarray | Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


# Reading by other means


def read_png(data: bytes) -> tuple[Array, Array]:
    """(image, label) that a PNG holds; (None, None) if anything is wrong with it."""
    try:
        return _read_png(data)
    except (struct.error, zlib.error, ValueError, KeyError, IndexError):
        return None, None


def _read_png(data: bytes) -> tuple[Array, Array]:
    place, kind, idat, chunks = 8, b"", b"", {}
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        if struct.unpack_from(">I", data, place + 8 + length)[0] != zlib.crc32(kind + content):
            raise ValueError("checksum")
        if kind == b"IDAT":
            idat += content
        chunks[kind] = content
        place += 12 + length
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if data[12:16] != b"IHDR" or width * height > 10**6 or data[26:28] != b"\0\0" or interlaced > 1:
        raise ValueError("header")
    if depth not in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}[color]:
        raise ValueError("depth")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    raw = zlib.decompressobj(-15).decompress(idat[2:])  # its own checksum is over what was before the damage
    values = np.zeros((height, width, channels), np.int64)
    for y, x, dy, dx in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = values[y::dy, x::dx]
        if not part.size:
            continue
        length = (part.shape[1] * channels * depth + 7) // 8
        step = max(channels * depth // 8, 1)
        above = bytearray(length)
        for row in range(len(part)):
            line, raw = raw[: length + 1], raw[length + 1 :]
            if len(line) <= length:
                raise ValueError("too short")
            above = unfiltered(line[0], bytearray(line[1:]), above, step)
            if depth == 16:
                samples = np.frombuffer(bytes(above), ">u2")
            else:
                bits = np.unpackbits(np.frombuffer(bytes(above), np.uint8))
                bits = bits[: part.shape[1] * channels * depth].reshape(-1, depth)
                samples = bits @ (1 << np.arange(depth)[::-1])
            part[row] = samples.reshape(part.shape[1], channels)
    label = values[..., 0] if color in (0, 3) and b"acTL" not in chunks else None
    if color == 3:
        colors = np.zeros((256, 3), np.uint8)
        table = np.frombuffer(chunks.get(b"PLTE", b""), np.uint8).reshape(-1, 3)
        colors[: len(table)] = table
        picture = colors[values[..., 0]] if len(table) else None
    else:
        shades = np.rint(values[..., : 1 if color in (0, 4) else 3] * 255 / (2**depth - 1)).astype(np.uint8)
        picture = np.broadcast_to(shades, (height, width, 3))
    turn = orientation(chunks.get(b"eXIf", b""))
    return None if picture is None else turned(picture, turn), label if turn == 1 else None


def unfiltered(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    if kind > 4:
        raise ValueError("filter")
    for i in range(len(line)):
        a, b, c = (line[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        line[i] = (line[i] + (0, a, b, (a + b) // 2, paeth)[kind]) % 256
    return line


def exif(turn: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0) + b"\0\0\0\0"


def orientation(data: bytes) -> int:
    return data[18] if data[:18] == exif(1)[:18] and len(data) == len(exif(1)) and data[18] in range(1, 9) else 1


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """EXIF's eight cases, one by one."""
    return {
        1: lambda: image,
        2: lambda: np.fliplr(image),
        3: lambda: np.rot90(image, 2),
        4: lambda: np.flipud(image),
        5: lambda: image.swapaxes(0, 1),
        6: lambda: np.rot90(image, -1),
        7: lambda: np.rot90(image, 2).swapaxes(0, 1),
        8: lambda: np.rot90(image),
    }[turn]()


def read_by_pillow(data: bytes) -> Array:
    with tempfile.TemporaryFile() as nowhere, redirected(nowhere), contextlib.suppress(Exception):
        image = Image.open(io.BytesIO(data))
        image.load()
        with contextlib.suppress(Exception):  # EXIF data that cannot be read are as good as none
            image = ImageOps.exif_transpose(image)
        return np.array(image.convert("RGB"))
    return None


def read_by_opencv(data: bytes) -> Array:
    with tempfile.TemporaryFile() as nowhere, redirected(nowhere):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else image[..., ::-1]


@contextlib.contextmanager
def redirected(file: IO) -> Iterator[None]:
    """What is written to stderr, also by libraries in C, goes to the file."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Files that are whole


def whole_files(rng: np.random.Generator) -> Iterator[Case]:
    """One file of every kind, with what it holds."""
    rgb = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (W, H), interpolation=cv2.INTER_CUBIC)
    classes = rng.integers(0, CLASSES, (H, W)).astype(np.uint8)
    classes[3:6] = IGNORED
    colors = rng.integers(0, 256, (256, 3), np.uint8)
    plte = chunk(b"PLTE", colors.tobytes())
    yield from whole_pngs(rng, classes, colors)
    extras = {
        "texts": [chunk(b"tEXt", b"Comment\0" + b"x" * 99), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))],
        "profile": [chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"no profile")), chunk(b"gAMA", b"\0\0\0\1")],
        "sizes": [chunk(b"sBIT", b"\1\1\1\1\1"), chunk(b"hIST", b"\0"), chunk(b"tRNS", b"")],
    }
    for name, chunks in extras.items():
        yield Case(f"png {name}", png(classes[..., None], 8, 0, before=chunks), np.dstack([classes] * 3), classes)
    frames = [
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 9, 0, 0)),
    ]
    second = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, W, H, 0, 0, 1, 9, 0, 0))
    second += chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes((W + 1) * H)))
    animated = png(classes[..., None], 8, 3, before=[plte, *frames], after=[second])
    yield Case("apng", animated, colors[classes])
    for turn in range(1, 9):
        held = classes if turn == 1 else None
        data = png(classes[..., None], 8, 3, before=[plte, chunk(b"eXIf", exif(turn))])
        yield Case(f"png turn {turn}", data, turned(colors[classes], turn), held)
        data = tiff(classes[..., None], 8, 1, turn=turn)
        yield Case(f"tiff turn {turn}", data, turned(np.dstack([classes] * 3), turn), ending=".tif")
        data = by_pillow(rgb, "JPEG", quality=95, exif=b"Exif\0\0" + exif(turn))
        yield Case(f"jpeg turn {turn}", data, read_by_opencv(data), ending=".jpg")
        data = by_pillow(rgb, "WEBP", lossless=True, exif=exif(turn))
        yield Case(f"webp turn {turn}", data, turned(rgb, turn), ending=".webp")
    wrong = classes.copy()
    wrong[7, 8] = rng.integers(CLASSES, IGNORED)
    yield Case("label out of range", png(wrong[..., None], 8, 3, before=[plte]), colors[wrong], wrong)
    for shape in ((H, W + 1), (H - 1, W), (W, H), (1, 1), (1, 40000), (40000, 1)):
        flat = np.full(shape, 7, np.uint8)
        yield Case(f"size {shape}", png(flat[..., None], 8, 0), np.dstack([flat] * 3), flat)
    yield from whole_jpegs(rng, rgb, classes)
    yield from whole_others(rng, rgb, classes, colors)


def whole_pngs(rng: np.random.Generator, classes: np.ndarray, colors: np.ndarray) -> Iterator[Case]:
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            for interlaced in (False, True):
                channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
                values = rng.integers(0, 2**depth, (H, W, channels))
                if color in (0, 3) and interlaced == (depth % 8 == 0):  # half of them are possible labels
                    values = np.where(classes < min(2**depth, CLASSES), classes, 1)[..., None]
                before = [chunk(b"PLTE", colors[: 2**depth].tobytes())] if color == 3 else []
                if interlaced and color in (0, 2, 3):
                    see_through = bytes(range(2**depth))[::-1] if color == 3 else b"\0\1" * channels
                    before.append(chunk(b"tRNS", see_through))
                data = png(values, depth, color, interlaced=interlaced, before=before)
                picture, label = read_png(data)
                if color in (0, 3):
                    assert (label == values[..., 0]).all()
                yield Case(f"png colour {color} depth {depth} interlaced {interlaced}", data, picture, label)


def whole_jpegs(rng: np.random.Generator, rgb: np.ndarray, classes: np.ndarray) -> Iterator[Case]:
    cmyk = Image.frombytes("CMYK", (W, H), np.dstack([rgb, rgb[..., 0]]).tobytes())
    for name, image, options in (
        ("rgb", rgb, {}),
        ("fine", rgb, {"subsampling": 0}),
        ("progressive", rgb, {"progressive": True}),
        ("grey", rgb[..., 0], {}),
        ("classes", classes, {"quality": 100}),
        ("cmyk", cmyk, {}),
    ):
        data = by_pillow(image, "JPEG", **options)
        # Both mix the four inks without a profile, with different rounding.
        yield Case(f"jpeg {name}", data, read_by_opencv(data), tolerance=2 * (name == "cmyk"), ending=".jpg")


def whole_others(rng: np.random.Generator, rgb: np.ndarray, classes: np.ndarray, colors: np.ndarray) -> Iterator[Case]:
    grey = np.dstack([classes] * 3)
    deep = rng.integers(0, 65536, (H, W, 3))
    ramp = np.repeat(np.arange(256)[:, None], 3, axis=1)
    yield Case("bmp palette", bmp(classes, colors), colors[classes], ending=".bmp")
    yield Case("bmp grey", bmp(classes, ramp), grey, ending=".bmp")
    yield Case("bmp runs", bmp(classes, colors, runs=True), colors[classes], ending=".bmp")
    yield Case("bmp rgb", by_pillow(rgb, "BMP"), rgb, ending=".bmp")
    few = classes % 16
    for order in "<>":
        for name, picture, values, bits, meaning, kind in (
            ("grey", grey, classes, 8, 1, 1),
            ("grey 16", None, classes, 16, 1, 1),
            ("grey 32", None, classes, 32, 1, 1),
            ("signed 16", None, classes, 16, 1, 2),
            ("float", None, classes, 32, 1, 3),
            ("inverted", 255 - grey, classes, 8, 0, 1),
            ("inverted 16", None, classes, 16, 0, 1),
            ("4 bits", np.dstack([few * 17] * 3), few, 4, 1, 1),
            ("palette", tiff_palette(classes), classes, 8, 3, 1),
            ("rgb", rgb, rgb, 8, 2, 1),
            ("rgb 16", None, deep, 16, 2, 1),
        ):
            data = tiff(values.reshape(H, W, -1), bits, meaning, order=order, kind=kind)
            yield Case(f"tiff {order} {name}", data, picture, ending=".tif")
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Case(f"tiff {packing}", by_pillow(classes, "TIFF", compression=packing), grey, ending=".tif")
    lossy = by_pillow(classes, "TIFF", compression="jpeg")
    yield Case("tiff jpeg", lossy, np.array(Image.open(io.BytesIO(lossy)).convert("RGB")), ending=".tif")
    pages = [Image.fromarray(classes), Image.fromarray(few)]
    data = by_pillow(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    yield Case("tiff pages", data, grey, ending=".tif")
    frames = [Image.fromarray(rgb), Image.fromarray(rgb[::-1]), Image.fromarray(rgb[:, ::-1])]
    data = by_pillow(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    yield Case("webp frames", data, rgb, ending=".webp")
    data = by_pillow(rgb, "WEBP", quality=80)
    yield Case("webp lossy", data, read_by_opencv(data), ending=".webp")
    alpha = np.dstack([rgb, np.maximum(rgb[..., 0], 1)])
    yield Case("webp alpha", by_pillow(alpha, "WEBP", lossless=True, exact=True), rgb, ending=".webp")
    indexed = [Image.fromarray(part) for part in (classes, few)]
    for frame in indexed:
        frame.putpalette(colors.ravel().tolist())
    yield Case("gif", by_pillow(indexed[0], "GIF"), colors[classes], ending=".gif")
    data = by_pillow(indexed[0], "GIF", save_all=True, append_images=indexed[1:], transparency=3)
    yield Case("gif frames", data, colors[classes], ending=".gif")
    yield Case("ppm", by_pillow(rgb, "PPM"), rgb, ending=".ppm")
    yield Case("pgm", b"P5 %d %d 255\n" % (W, H) + classes.tobytes(), grey, ending=".pgm")
    yield Case("pgm 4 bits", b"P5 %d %d 15\n" % (W, H) + few.tobytes(), np.dstack([few * 17] * 3), ending=".pgm")
    yield Case("pgm 16", b"P5 %d %d 65535\n" % (W, H) + classes.astype(">u2").tobytes(), ending=".pgm")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"
    yield Case("postscript", postscript)
    for form in ("ICO", "JPEG2000", "AVIF", "TGA", "PCX", "SGI"):
        with contextlib.suppress(OSError, KeyError):
            yield Case(f"other {form}", by_pillow(rgb, form))


# Files that lie about their size


def with_crc(data: bytes) -> bytes:
    """A PNG with the checksum of every chunk made right, as far as its chunks can be followed."""
    fixed, place = bytearray(data), 8
    while place + 12 <= len(fixed):
        end = place + 12 + int.from_bytes(fixed[place : place + 4], "big")
        if end > len(fixed):
            break
        fixed[end - 4 : end] = struct.pack(">I", zlib.crc32(fixed[place + 4 : end - 4]))
        place = end
    return bytes(fixed)


def liars(whole: list[Case]) -> Iterator[Case]:
    """Sizes that a header claims and the file does not hold, and files that hold far more than they weigh."""
    of = {case.name: case.content for case in whole}
    missing = png(np.zeros((H - 1, W, 1)), 8, 0)
    yield Case("png without its last row", with_crc(missing[:16] + struct.pack(">II", W, H) + missing[24:]))
    large = ((65535, 65535), (2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 9), (9400, 9400))
    for sizes in (*large, (0, 5), (5, 0), (W, H + 1)):
        for name in ("png colour 0 depth 8 interlaced False", "png colour 6 depth 16 interlaced True", "apng"):
            data = bytearray(of[name])
            data[16:24] = struct.pack(">II", *sizes)
            yield Case(f"{name} claims {sizes}", with_crc(data))
        width, height = (min(side, 2**31 - 1) for side in sizes)
        data = bytearray(of["bmp palette"])
        data[18:26] = struct.pack("<ii", width, height)
        yield Case(f"bmp claims {sizes}", bytes(data), ending=".bmp")
    for width, height in ((65500, 65500), (0, 5), (2000, 2000)):
        for name in ("jpeg rgb", "jpeg progressive"):
            data = bytearray(of[name])
            frame = data.index(b"\xff\xc2" if "progressive" in name else b"\xff\xc0")
            data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
            yield Case(f"{name} claims {width}x{height}", bytes(data), ending=".jpg")
        data = bytearray(of["gif"])
        data[6:10] = struct.pack("<HH", width, height)
        yield Case(f"gif claims {width}x{height}", bytes(data), read_by_pillow(data), may_fail=True, ending=".gif")
    for bits, meaning in ((8, 1), (32, 1)):
        data = tiff(np.zeros((H, W, 1)), bits, meaning).replace(
            struct.pack("<HHIHH", 257, 3, 1, H, 0), struct.pack("<HHII", 257, 4, 1, 2**31)
        )
        yield Case(f"tiff {bits} bits claims 2**31 rows", data, ending=".tif")
    packer = zlib.compressobj()
    bomb = b"".join(packer.compress(bytes(10**6)) for _ in range(101)) + packer.flush()
    zeros = np.zeros((H, W, 3), np.uint8)
    for name, width, height, picture in (("a bomb", 10000, 10000, None), ("more than it says", W, H, zeros)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
        yield Case(f"png, {name}", data, picture, None if picture is None else picture[..., 0], may_fail=True)


# What is no file


def no_files() -> Iterator[Case]:
    """Names that lead to no file that could be read."""

    def listener(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as end, contextlib.suppress(OSError):  # the path may be too long
            end.bind(str(path))

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(2**36)

    def forbidden(path: Path) -> None:
        path.write_bytes(b"")
        path.chmod(0)

    for name, make in {
        "nothing": lambda path: None,
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "link to nothing": lambda path: path.symlink_to("nowhere"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to a folder": lambda path: path.symlink_to("."),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "link to a terminal": lambda path: path.symlink_to("/dev/tty"),
        "socket": listener,
        "64 GB of nothing": sparse,
        "no permission": forbidden,
    }.items():
        yield Case(name, make)
    yield Case("below a file", lambda path: path.parent.write_bytes(b""), ending="/x.png")
    yield Case("too long a name", lambda path: None, ending="x" * 300)
    yield Case("no name", lambda path: None, ending="\0.png")
    for name, content in (("empty", b""), ("text", b"a label\n" * 99), ("zeros", bytes(999))):
        yield Case(name, content)


# Damage


def truncated(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(len(data) * rng.random()) :]


def one_bit(data: bytearray, rng: np.random.Generator) -> None:
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def header_bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(min(len(data), 64))] ^= 1 << int(rng.integers(8))


def bytes_of_noise(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    data[start : start + 16] = rng.bytes(min(16, len(data) - start))


def block_of_zeros(data: bytearray, rng: np.random.Generator) -> None:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    data[start : start + length] = bytes(len(data[start : start + length]))


def block_lost(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 100))]


def block_twice(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    data[start:start] = data[start : start + int(rng.integers(1, 100))]


DAMAGES = (truncated, one_bit, header_bits, bytes_of_noise, block_of_zeros, block_lost, block_twice)


def damaged(whole: Case, rng: np.random.Generator) -> Case:
    """The file with one kind of damage; what it holds now, another decoder says."""
    data = bytearray(whole.content)
    damage = DAMAGES[rng.integers(len(DAMAGES))]
    damage(data, rng)
    repaired = data.startswith(b"\x89PNG\r\n\x1a\n") and rng.random() < 0.5
    data = with_crc(data) if repaired else bytes(data)
    case = whole._replace(name=f"{whole.name}, {damage.__name__}{' repaired' * repaired}", content=data, may_fail=True)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        picture, label = read_png(data)
        return case._replace(picture=picture, label=label)
    if damage is truncated and whole.ending != ".tif":  # a TIFF may lose tags at its end and still be one
        return case
    # Without checksums nobody can tell: an image of what is left must be the one that others see.
    return case._replace(picture=read_by_pillow(data))


def cases(count: int, seed: int) -> Iterator[Case]:
    """`count` files: those that are odd as they are, then damaged ones."""
    rng = np.random.default_rng(seed)
    whole = list(whole_files(rng))
    odd = [*no_files(), *liars(whole), *whole]
    if count < len(odd):
        odd = [odd[i] for i in rng.permutation(len(odd))[: count // 2]]
    yield from odd
    for _ in range(count - len(odd)):
        yield damaged(whole[rng.integers(len(whole))], rng)


# Reading


def complaints(case: Case, path: Path, good: tuple[str, str]) -> Iterator[str]:
    """What is wrong with the way the file was read."""
    unlabelled = {"classes": Classes.numbered(CLASSES, IGNORED), "training": True}
    crop = [C.ResizeStepScaling(), C.RandomPaddingCrop(crop_size=(32, 16)), C.RandomDistort(), C.Normalize()]
    for key, held, pair in (("img", case.picture, (str(path), None)), ("label", case.label, (good[0], str(path)))):
        if key == "label" and held is not None:
            fits = held.shape == SIZE and np.isin(held, [*range(CLASSES), IGNORED]).all()
            held = held if fits else None
        dataset = SegmentationDataset(pairs=[pair, good], **unlabelled)
        found = [outcome(dataset, key, workers) for workers in (0, 2)]
        for what in found:
            if isinstance(what, str):
                if held is not None and not case.may_fail:
                    yield f"{key}: refused, {what}"
                if printable(str(path)) not in what or what.count("\n") or len(what) > 700:
                    yield f"{key}: no sentence that names the file: {what}"
            elif held is None:
                yield f"{key}: read as {what.shape}, expected to be refused"
            else:
                image = held.transpose(2, 0, 1) if key == "img" else held
                if what.shape != image.shape:
                    yield f"{key}: read as {what.shape}, expected {image.shape}"
                elif (difference := np.abs(what - image)).max() > case.tolerance:
                    yield f"{key}: {(difference > case.tolerance).sum()} values differ, by up to {difference.max():g}"
        refused = isinstance(found[0], str)
        dataset = SegmentationDataset(pairs=[pair, good], transforms=crop, bad_sample_limit=1, **unlabelled)
        sample = dataset[0]
        if not np.isfinite(sample["img"]).all() or sample["img"].shape != (3, 16, 32):
            yield f"{key}: transformed into {sample['img'].shape}"
        if list(dataset.skipped) != [pair[0]] * refused:
            yield f"{key}: skipped {dataset.skipped}"


def outcome(dataset: SegmentationDataset, key: str, workers: int) -> np.ndarray | str:
    """What sample 0 holds, or why it holds nothing."""
    try:
        return next(batches(dataset, [[0]], workers))[key][0]
    except DataError as error:
        return str(error)


def run(folder: Path, count: int, seed: int) -> int:
    """Read all cases; returns how many went wrong."""
    rng = np.random.default_rng(seed)
    good = str(folder / "good.png"), str(folder / "good_label.png")
    Path(good[0]).write_bytes(png(rng.integers(0, 256, (H, W, 3)), 8, 2))
    Path(good[1]).write_bytes(png(rng.integers(0, CLASSES, (H, W, 1)), 8, 0))
    wrong, worst, slowest = 0, (0, ""), (0.0, "")
    with (folder / "stderr").open("w+b") as stderr, os.fdopen(os.dup(2), "w") as console, redirected(stderr):
        for number, case in enumerate(cases(count, seed)):
            path = folder / f"{number}{case.ending}"
            case.content(path) if callable(case.content) else path.write_bytes(case.content)
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=console)
            print(number, case.name, file=console, flush=True)  # after a crash or a hang this says where
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            found = list(complaints(case, path, good))
            seconds = time.perf_counter() - start
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            faulthandler.cancel_dump_traceback_later()
            stderr.seek(0)
            printed = [line for line in stderr.read().decode(errors="replace").splitlines() if not expected_line(line)]
            stderr.seek(0)
            stderr.truncate()
            if printed and not (case.ending == ".tif" and case.may_fail):  # Pillow does not silence libtiff
                found.append(f"stderr: {printed}")
            if grown > MEGABYTES:
                found.append(f"it took {grown:.0f} MB")
            for complaint in dict.fromkeys(found):
                print(f"{path.name} ({case.name}): {complaint}")
            wrong += bool(found)
            worst, slowest = max(worst, (grown, case.name)), max(slowest, (seconds, case.name))
    print(f"{number + 1} files, {wrong} of them wrong; slowest {slowest[0]:.2f} s ({slowest[1]}); ", end="")
    print(f"most memory {worst[0]:.0f} MB ({worst[1]})")
    return wrong


def expected_line(line: str) -> bool:
    """Ours about what stands in, and libpng's about pixels that are wrong although their checksum is right."""
    return line.startswith(("warning: another image stands in for", "libpng error: ", "libpng warning: "))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    args = parser.parse_args()
    prepare()
    warnings.simplefilter("always", append=True)
    import paddle  # noqa: F401 (as in training: its libraries must not get in the way of the decoders)

    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(run(args.folder or Path(temporary), args.count, args.seed)))
