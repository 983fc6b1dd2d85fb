# SPDX-License-Identifier: Apache-2.0
"""What a TIFF's first directory says about its bands, before Pillow decodes them.

Satellite and aerial images are TIFFs that hold more than red, green and blue in 8 bits. Pillow refuses most of them
without saying why, and of some it takes the first three bands for colours.
"""

from __future__ import annotations

import contextlib
import struct

from hmsa.errors import UnfitError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two are BigTIFF's

_WIDTH, _HEIGHT = 256, 257
_BITS, _COMPRESSION, _MEANING, _BANDS, _PLANES, _EXTRAS, _KIND = 258, 259, 262, 277, 284, 338, 339
_DEFAULTS = {_BITS: 1, _COMPRESSION: 1, _MEANING: -1, _BANDS: 1, _PLANES: 1, _EXTRAS: 0, _KIND: 1} | {
    _WIDTH: 0,
    _HEIGHT: 0,
}
_GREY, _RGB = (0, 1), 2
_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned"}
_LAYOUTS = {1: "B", 3: "H", 4: "L", 16: "Q"}  # of whole numbers, by a tag's type
_MAX_BANDS = 6  # that Pillow decodes
_MAX_NUMBERS = 4096  # that are read of a tag, and tags of a directory

_AS_RGB = (
    "write red, green and blue alone in 8 bits: gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB -co INTERLEAVE=PIXEL "
    "in.tif out.tif (with the numbers of these bands)"
)
_AS_BYTES = (
    "bring all images from one range to 8 bits: gdal_translate -ot Byte -scale LOWEST HIGHEST 0 255 -b 1 -b 2 -b 3 -co "
    "PHOTOMETRIC=RGB in.tif out.tif (with the numbers of red, green and blue)"
)


def check(data: bytes) -> None:
    """UnfitError if the bands cannot be told from one another, have no known range, or are not decoded by Pillow."""
    tags = _tags(data)
    bits, bands, meaning = max(tags[_BITS]), tags[_BANDS][0], tags[_MEANING][0]
    kinds = {_KINDS.get(kind, "complex") for kind in tags[_KIND]}
    if bits > 8 or kinds != {"unsigned"}:
        kind = "/".join(sorted(kinds))
        raise UnfitError(f"its channels are {kind} numbers of {bits} bits, whose range is not known", _AS_BYTES)
    if meaning in _GREY and bands > 2:
        raise UnfitError(f"its {bands} bands are marked as grey values, not as red, green and blue", _AS_RGB)
    if tags[_PLANES][0] == 2 and bands > 3:
        raise UnfitError(f"its {bands} bands are stored plane by plane, which is read of three alone", _AS_RGB)
    if bands > _MAX_BANDS:
        raise UnfitError(f"it has {bands} bands, and at most {_MAX_BANDS} are read", _AS_RGB)


def unrecognised(data: bytes) -> UnfitError:
    """The error for what passes `check` and Pillow does not open."""
    tags = _tags(data)
    said = f"{tags[_BANDS][0]} bands of {max(tags[_BITS])} bits, photometric interpretation {tags[_MEANING][0]}, "
    said += f"compression {tags[_COMPRESSION][0]}"
    return UnfitError(f"it is a TIFF that is damaged or of a kind that is not read ({said})", _AS_RGB)


def bands_beside_rgb(data: bytes) -> int:
    """How many bands of no known meaning, infrared perhaps, follow red, green and blue."""
    tags = _tags(data)
    is_rgb = tags[_MEANING][0] == _RGB and tags[_EXTRAS][0] == 0
    return max(tags[_BANDS][0] - 3, 0) if is_rgb else 0


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height; 0 where they are not said."""
    tags = _tags(data)
    return tags[_WIDTH][0], tags[_HEIGHT][0]


def channels_of(data: bytes) -> int:
    """Of all bands, where they are not red, green and blue of 8 bits, opacity perhaps beside them; else 3."""
    try:
        check(data)
    except UnfitError:
        return _tags(data)[_BANDS][0]
    return 3 + bands_beside_rgb(data)


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The numbers of the tags above in the first directory, with their defaults; what is damaged is left out."""
    order, is_big = ("<" if data[:2] == b"II" else ">"), b"+" in data[2:4]
    size, count, entry = ("Q", "Q", "HHQ") if is_big else ("L", "H", "HHL")
    room = struct.calcsize(order + size)  # bytes of an offset, in place of which few numbers stand themselves
    tags = {tag: (value,) for tag, value in _DEFAULTS.items()}

    with contextlib.suppress(struct.error):
        (place,) = struct.unpack_from(order + size, data, room)
        (entries,) = struct.unpack_from(order + count, data, place)
        place += struct.calcsize(order + count)
        for _ in range(min(entries, _MAX_NUMBERS)):
            tag, layout, length = struct.unpack_from(order + entry, data, place)
            place += struct.calcsize(order + entry)
            if tag in tags and layout in _LAYOUTS and 0 < length <= _MAX_NUMBERS:
                numbers, start = f"{order}{length}{_LAYOUTS[layout]}", place
                if struct.calcsize(numbers) > room:
                    (start,) = struct.unpack_from(order + size, data, place)
                tags[tag] = struct.unpack_from(numbers, data, start)
            place += room
    return tags
