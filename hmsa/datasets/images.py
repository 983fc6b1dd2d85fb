# SPDX-License-Identifier: Apache-2.0
"""Reading images and labels: what the file holds, or a sentence that names it.

Files come from anywhere and may be damaged, or made to do damage. Only ordinary files are opened, only the formats
below are decoded, and no more pixels than a limit: `max_pixels`, or Pillow's where it is None. A PNG's checksums are
compared here, as decoders leave some of them out. A label's numbers are those of the file: what would change them is
refused.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import sys
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import cv2
import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from hmsa.datasets import tiff
from hmsa.errors import DataError, OversizedError, UnfitError, printable

# Pillow knows more, some of which start other programs (PostScript) or unpack archives.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# Damage to any other would go unnoticed, and some lose or rescale numbers.
LABEL_FORMATS = ("PNG",)

# In place of Pillow's own choice, which counts the images in a JPEG; here the first is meant in any case.
_OPEN = {"JPEG": JpegImagePlugin.JpegImageFile}

# As Pillow knows them, in lower case. Drones and phones write MPO: a JPEG with further ones behind it.
IMAGE_SUFFIXES = tuple(
    sorted(suffix for suffix, form in Image.registered_extensions().items() if form in (*IMAGE_FORMATS, "MPO"))
)

_LOSSY = ("JPEG", "WEBP")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_GREY, _PNG_PALETTE = 0, 3
_chunk_start = struct.Struct(">I4s").unpack_from
_checksum = struct.Struct(">I").unpack_from

_MAX_JPEG_PIXELS_PER_BYTE = 8 * 64  # a block of 8x8 takes at least a bit; decoders make up the blocks that are missing


def read_bytes(path: str | Path, max_pixels: Optional[int] = None, *, bytes_per_pixel: int = 16) -> bytes:
    """The content of an ordinary file; DataError says why there is none."""
    try:
        found = Path(path).stat()
        if stat.S_ISDIR(found.st_mode):
            raise OSError("it is a folder")
        if not stat.S_ISREG(found.st_mode):  # a pipe would wait for a writer, a device has no end
            raise OSError("it is a pipe or a device")
        if found.st_size > bytes_per_pixel * _limit(max_pixels):
            raise UnfitError(
                f"its {found.st_size} bytes are more than {_limit(max_pixels)} pixels take",
                "replace it, or raise max_image_pixels in the recipe",
            )
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason, remedy = getattr(error, "strerror", None) or error, getattr(error, "remedy", "replace or remove it")
        raise DataError(f"{path} should be a readable file, but: {reason}; {remedy}") from error


def read_image(path: str | Path, max_pixels: Optional[int] = None) -> np.ndarray:
    """The image as uint8 [H, W, 3] RGB, turned upright as its EXIF data say. DataError if unreadable.

    Grey and palette images get three channels; transparency is left out, the colours are those stored; a PNG's 16
    bits become 8 by value / 257; of an animation or of several pages the first is taken. A TIFF's bands beside red,
    green and blue are left out, which is said once.
    """
    return read_upright(path, max_pixels)[0]


def read_upright(path: str | Path, max_pixels: Optional[int] = None) -> tuple[np.ndarray, int]:
    """`read_image`, and EXIF's orientation: how the pixels were turned, on which a label may have been drawn as they
    are stored; 1 is not at all, others are up to 8."""
    return decoded(read_bytes(path, max_pixels), path, max_pixels)


def decoded(data: bytes, path: str | Path, max_pixels: Optional[int] = None) -> tuple[np.ndarray, int]:
    """`read_upright` of a file's content; `path` is what messages call it."""
    with decoding(path, "a readable image", "replace or remove it"):
        pil, data, _ = opened(data, IMAGE_FORMATS, max_pixels)
        if pil.format == "PNG":
            image = decode_png(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            if image.dtype == np.uint16:
                image = cv2.convertScaleAbs(image, alpha=1 / 257)
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        else:
            image = _decode_by_pillow(pil, data)
        if pil.format == "TIFF":
            _say_what_is_left_out(path, tiff.bands_beside_rgb(data))
        orientation = orientation_of(pil)
        return turned(image, orientation), orientation


def from_pil(pil: Image.Image, name: str) -> np.ndarray:
    """What `read_image` gives of the file that a Pillow image was opened from; `name` is what messages call it."""
    with decoding(name, "a readable image", "replace or remove it"):
        if pil.mode.startswith(("I", "F")):
            raise UnfitError(f"its mode is {pil.mode}, expected 8 bits a channel", "give the path of its file instead")
        orientation = orientation_of(pil)
        shown = pil.copy()  # so that the caller's own keeps its transparency
        shown.info.pop("transparency", None)
        return turned(np.array(shown.convert("RGB")), orientation)


def read_label(path: str | Path, max_pixels: Optional[int] = None) -> np.ndarray:
    """The label image as integers [H, W], the numbers that are stored; with a palette, the indices.

    DataError if it is not a whole PNG, or leaves open which numbers are meant: several channels, an animation, EXIF
    data that ask for a turn.
    """
    remedy = "save it as a grey or a palette PNG"
    return _read_mask(path, max_pixels, "a label image with one channel of class numbers", remedy, _numbers)


def read_mask(path: str | Path, max_pixels: Optional[int] = None, *, colors: bool = False) -> np.ndarray:
    """What a mask holds: integers [H, W], also where red, green and blue are the same everywhere; with `colors`, or
    where they differ, uint8 [H, W, 3] RGB, of a palette its colours.

    DataError as `read_label`'s, and for colours of 16 bits or behind transparency.
    """
    decode = _colors if colors else _numbers_or_colors
    return _read_mask(path, max_pixels, "a mask", "save it as a PNG without transparency", decode)


def _read_mask(
    path: str | Path, max_pixels: Optional[int], expected: str, remedy: str, decode: Callable[[bytes], np.ndarray]
) -> np.ndarray:
    data = read_bytes(path, max_pixels)
    with decoding(path, expected, remedy):
        pil, data, extras = opened(data, LABEL_FORMATS, max_pixels)
        if b"acTL" in extras:
            raise ValueError("it is animated")
        if orientation_of(pil) != 1:
            raise ValueError("its EXIF data ask for a turn")
        return decode(data)


def _numbers(png: bytes) -> np.ndarray:
    depth, kind = png[24:26]
    if kind not in (_PNG_GREY, _PNG_PALETTE):
        raise ValueError("it has colours or transparency")
    label = decode_png(_as_grey(png), cv2.IMREAD_UNCHANGED)
    return label // (255 // (2**depth - 1)) if depth < 8 else label  # shades are stretched to 0..255


def _colors(png: bytes) -> np.ndarray:
    if png[24] == 16:
        raise ValueError("its colours have 16 bits a channel, where masks have 8")
    image = decode_png(png, cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4 and image[..., 3].min() < 255:
        raise ValueError("some of its pixels are transparent, which leaves open what they mean")
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _numbers_or_colors(png: bytes) -> np.ndarray:
    _, kind = png[24:26]
    if kind in (_PNG_GREY, _PNG_PALETTE):
        return _numbers(png)
    image = _colors(png)
    red, green, blue = (image[..., channel] for channel in range(3))
    return red.copy() if np.array_equal(red, green) and np.array_equal(green, blue) else image


def starts_as_image(path: str | Path) -> bool:
    """Whether a file starts as an image of a known format does, whatever its name says."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(4096)
    except (OSError, ValueError):
        return False
    for form in IMAGE_FORMATS:
        if _accepts(form, start[:16]):
            if form not in ("BMP", "PPM"):  # whose first two letters may as well be those of a name in a list
                return True
            with contextlib.suppress(Exception):
                Image.OPEN[form][0](io.BytesIO(start), "")
                return True
    return False


def strange_values(label: np.ndarray, known: Container[int]) -> str:
    """The numbers of a label, integers [H, W], that are not in `known`, for a message; empty if there are none."""
    if label.dtype == np.uint8:
        present = np.flatnonzero(cv2.calcHist([label], [0], None, [256], [0, 256]))
    else:
        present = np.unique(label)
    strange = [value for value in present.tolist() if value not in known]
    more = f" and {len(strange) - 10} more" if len(strange) > 10 else ""
    return ", ".join(map(str, strange[:10])) + more


def check_size(width: int, height: int, max_pixels: Optional[int] = None) -> None:
    """ValueError unless there are pixels, and no more than the limit."""
    limit = _limit(max_pixels)
    if not (width > 0 and height > 0 and width * height <= limit):
        raise OversizedError(
            f"its size is {width}x{height} pixels, expected 1 to {limit} pixels in all",
            "cut it into tiles, or raise max_image_pixels in the recipe",
        )


def opened(
    data: bytes, formats: tuple[str, ...], max_pixels: Optional[int]
) -> tuple[Image.Image, bytes, dict[bytes, bytes]]:
    """The image, its header read; of a PNG the chunks that make its pixels, and the content of the others by name."""
    extras: dict[bytes, bytes] = {}
    is_png = data.startswith(_PNG_SIGNATURE)
    if is_png:
        data, extras = _checked_png(data)
    pil = _recognised(data, formats)
    check_size(*pil.size, max_pixels)
    if is_png:
        pil.info["exif"] = extras.get(b"eXIf", b"")  # where Pillow looks for it
    return pil, data, extras


def _recognised(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """What `Image.open` does, but for its limit, which is one for all threads."""
    is_tiff = "TIFF" in formats and data.startswith(tiff.STARTS)
    if is_tiff:
        tiff.check(data)
    for form in formats:
        if _accepts(form, data[:16]):
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return _OPEN.get(form, Image.OPEN[form][0])(io.BytesIO(data), "")
    if is_tiff:
        raise tiff.unrecognised(data)
    other = next((form for form in IMAGE_FORMATS if form not in formats and _accepts(form, data[:16])), None)
    if other is None:
        raise ValueError(f"no image format is recognised ({', '.join(formats)})")
    if other not in _LOSSY:
        raise UnfitError(f"it is a {other} file", "convert it to PNG, which keeps its numbers")
    raise UnfitError(
        f"it is a {other} file, which changes numbers",
        "export masks anew as PNG, or turn what is left of their colours into classes by hmsa convert voc-colours",
    )


def _accepts(form: str, start: bytes) -> bool:
    """Whether a file of one of Pillow's formats may start like this."""
    _, accept = Image.OPEN.get(form, (None, None))
    answer = accept is not None and accept(start)
    return bool(answer) and not isinstance(answer, str)  # a text says that a library is missing


def _decode_by_pillow(pil: Image.Image, data: bytes) -> np.ndarray:
    """The colours that are stored, uint8 [H, W, 3] RGB."""
    if pil.mode.startswith(("I", "F")):
        raise UnfitError("its channels have more than 8 bits, which are read of PNG alone", "save it as a PNG")
    load(pil, data)
    return np.array(pil if pil.mode == "RGB" else pil.convert("RGB"))


def load(pil: Image.Image, data: bytes) -> None:
    """Let Pillow decode the pixels; ValueError if there are more than can be in the file."""
    if pil.format == "JPEG" and pil.width * pil.height > _MAX_JPEG_PIXELS_PER_BYTE * len(data):
        raise ValueError(f"its {len(data)} bytes are too few for {pil.width}x{pil.height} pixels")
    if pil.format == "TIFF" and pil.width * pil.height > _limit(None):
        # What `load` would do, had it no limit of its own.
        pil.im = Image.core.new(pil.mode, getattr(pil, "_tile_size", pil.size))
    pil.load()
    pil.info.pop("transparency", None)


_said: set[str] = set()


def _say_what_is_left_out(path: str | Path, bands: int) -> None:
    """Once in a process, as it is the same for thousands of files."""
    if bands and not _said:
        _said.add("bands")
        text = f"{path} has {bands + 3} bands: red, green and blue are read, the rest is left out, here and elsewhere"
        sys.stderr.write(printable(f"warning: {text}") + "\n")


def _checked_png(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The chunks that make the pixels, after comparing all checksums, and the content of the others by their names."""
    view = memoryview(data)
    pixels, extras, kind, start = [view[:8]], {}, b"", 8
    try:
        while kind != b"IEND":
            length, kind = _chunk_start(data, start)
            end = start + 12 + length
            if _checksum(data, end - 4)[0] != zlib.crc32(view[start + 4 : end - 4]):
                raise ValueError(f"the checksum of its chunk {str(kind, 'latin-1')!r} is wrong")
            if kind in _PNG_PIXELS:
                pixels.append(view[start:end])
            else:
                extras[kind] = bytes(view[start + 8 : end - 4])
            start = end
    except struct.error:
        raise ValueError("it ends too early") from None
    return b"".join(pixels), extras


def decode_png(data: bytes, flags: int) -> np.ndarray:
    """As OpenCV gives it, which takes little more than half of Pillow's time, and no missing row for a black one."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("its pixels are damaged or missing")
    return image


def _as_grey(png: bytes) -> bytes:
    """The PNG, cut down by `_checked_png`, with a palette's indices as shades of grey."""
    header = bytearray(png[12:29])
    header[13] = _PNG_GREY
    start = 33
    length, kind = _chunk_start(png, start)
    if kind == b"PLTE":
        start += 12 + length
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[start:]


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image [H, W, 3] turned and mirrored as EXIF's orientation 1..8 asks for."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def orientation_of(pil: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none or the EXIF data cannot be read."""
    try:
        value: Any = pil.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in `decoding`
        return 1
    return value if value in range(1, 9) else 1


def _limit(max_pixels: Optional[int]) -> float:
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    return float("inf") if limit is None else limit


@contextlib.contextmanager
def decoding(path: str | Path, expected: str, remedy: str) -> Iterator[None]:
    """Every error but a lack of memory becomes a DataError."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # of WebP and GIF, whose limit is Pillow's
        reason = f"more than {2 * _limit(None)} pixels are too many for the decoder of its format"
        raise DataError(f"{path} should be {expected}, but: {reason}; save it as PNG, JPEG or TIFF") from error
    except Exception as error:  # on damaged files Pillow raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = getattr(error, "remedy", remedy)
        raise DataError(f"{path} should be {expected}, but: {reason}; {remedy}") from error
