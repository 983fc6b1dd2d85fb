# SPDX-License-Identifier: Apache-2.0
"""Reading weight files as arrays, whoever wrote them, and writing them.

`.pdparams` and `.pth` are pickles (see `hmsa.weights.pickles`); `.safetensors` holds nothing but arrays. Reading
executes nothing that is in a file, unpacks nothing to the disk, and takes no more memory than twice the
file's size and 64 MiB. Each may be the only weight file in a `.tar`, `.tar.gz` or `.zip`: what such an
archive holds may be four times as large as itself (and 16 MiB), and is in memory once more while it is
read.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable, Optional, Union

import numpy as np

from hmsa.errors import DataError, UsageError
from hmsa.system.files import write_atomically
from hmsa.weights.pickles import DAMAGED, WRONG_SIZE, Machine, Refused, Room, Source, Storage, Tensor, check, is_shape

_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U8": "|u1",
    "BOOL": "|b1",
}
SUFFIXES = (".pdparams", ".pth", ".pt", ".safetensors")
"""Of weight files, in archives."""

_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_UNPACKED = 4  # How many times as large as an archive its content may be, besides 16 MiB.
_GZIP = b"\x1f\x8b"
_BOMB = f"it is an archive that unpacks to more than {_UNPACKED} times its size"
_JSON = 40  # Bytes, at most, that Python makes of one byte of JSON.
_ZIP = 16  # Bytes, at most, that Python makes of one byte of a zip's list of contents.

_SECTIONS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "ema")
"""Of checkpoints: where training programs put the weights, those of the average last."""


def _named(content: Any, depth: int = 0) -> dict[str, Any]:
    """The arrays and tensors in what a pickle held, by name; those of a checkpoint are in a section of it."""
    found, sections = {}, {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if type(value) is tuple and len(value) == 2:  # Paddle's spelling of a tensor
            value = value[1]
        if isinstance(name, str) and isinstance(value, (np.ndarray, Tensor)):
            found[name] = value
        elif isinstance(value, dict) and name in _SECTIONS and depth < 2:
            sections[name] = value
    for name in _SECTIONS[:1] if found else _SECTIONS:
        if name in sections and (inner := _named(sections[name], depth + 1)):
            return inner
    return found


def _arrays(content: Any, read: Callable[[Storage], bytes], room: Room) -> dict[str, np.ndarray]:
    """The tensors in what a PyTorch pickle held; a copy only where the numbers of one do not stand in order."""
    storages: dict[str, np.ndarray] = {}
    found = _named(content)
    for name, tensor in found.items():
        if isinstance(tensor, np.ndarray):
            continue
        key, dtype = tensor.storage.key, np.dtype(tensor.storage.dtype)
        if key not in storages:
            storages[key] = np.frombuffer(read(tensor.storage), dtype)
        strides = tuple(dtype.itemsize * step for step in tensor.stride)
        array = np.lib.stride_tricks.as_strided(storages[key][tensor.offset :], tensor.size, strides)
        if not array.flags.c_contiguous:
            room.take(array.nbytes)
            array = array.copy()
        found[name] = array
    return found


def _read_zip(file: IO[bytes], room: Room, *, packed: bool) -> dict[str, np.ndarray]:
    """PyTorch's format since 1.6, a zip with the pickle and one file a storage; unless `packed`, also any other zip."""
    listing = _Listing(file, room)
    with zipfile.ZipFile(listing) as archive:  # type: ignore[arg-type]
        listing.weight = 0  # What is read from here on is counted in `read`.
        roots = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("data.pkl")]
        if not roots and not packed:
            return _read_packed(*_only_in_zip(archive, room))
        check(len(roots) == 1, f"its zip holds {len(roots)} files called data.pkl instead of one")

        def read(name: str) -> bytes:
            info = archive.getinfo(roots[0] + name)
            plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
            check(plain, "its zip is compressed or encrypted, which PyTorch's are not")
            with archive.open(info) as entry:
                return Source(entry, room).read(info.file_size)

        def read_storage(storage: Storage) -> bytes:
            data = read(f"data/{storage.key}")
            check(len(data) == storage.nbytes, WRONG_SIZE)
            return data

        return _arrays(Machine(Source(io.BytesIO(read("data.pkl")), room)).load(), read_storage, room)


def _only_in_zip(archive: zipfile.ZipFile, room: Room) -> tuple[str, bytes]:
    """The only weight file in a zip, and its name."""
    info = archive.getinfo(_only_weights(archive.namelist()))
    # The others that zips know can be made to ask for any amount of memory.
    check(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    check(info.file_size <= _max_unpacked(room), _BOMB)
    with archive.open(info) as entry:
        return info.filename, entry.read(info.file_size)


def _only_in_tar(file: IO[bytes], room: Room) -> tuple[str, bytes]:
    """The only weight file in a tar, which may be compressed with gzip, and its name."""
    is_gzip = file.read(2) == _GZIP
    file.seek(0)
    data = gzip.GzipFile(fileobj=file).read(_max_unpacked(room) + 1) if is_gzip else file.read()
    check(len(data) <= _max_unpacked(room), _BOMB)

    names: list[str] = []
    content = b""
    # As a stream, which never goes back, whatever sizes are claimed.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # which would grow
            opened = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if opened is not None and _is_weights(member.name):
                names.append(member.name)
                content = opened.read()
    return _only_weights(names), content


def _read_packed(name: str, data: bytes) -> dict[str, np.ndarray]:
    """A weight file out of an archive."""
    return _parse(io.BytesIO(data), PurePosixPath(name).suffix, Room(len(data)), packed=True)


def _only_weights(names: Iterable[str]) -> str:
    """The name of the weight file in an archive. Refused if there is none, or another one."""
    found = [name for name in names if _is_weights(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Refused(f"it is an archive without a file of this kind ({', '.join(SUFFIXES)})", "give another")
    shown = " and ".join(name if len(name) <= 120 else f"...{name[-117:]}" for name in found[:2])
    raise Refused(f"it is an archive with several, {shown}", "unpack it and give the path of the one you want")


def _is_weights(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS puts a `._name` beside every file.
    return path.suffix in SUFFIXES and not name.endswith("/") and not path.name.startswith("._")


def _max_unpacked(room: Room) -> int:
    return _UNPACKED * room.file_size + (16 << 20)


class _Listing:
    """A file for `zipfile`, which makes large objects of its list of contents: that counts for more than its bytes."""

    def __init__(self, file: IO[bytes], room: Room) -> None:
        self._file, self._room = file, room
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.weight = _ZIP

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._room.file_size - self.tell())
        size = left if size < 0 else min(size, left)
        self._room.take(size * self.weight)
        return self._file.read(size)


def _read_pickles(file: IO[bytes], room: Room) -> dict[str, np.ndarray]:
    """Paddle's format, which is one pickle, or PyTorch's before 1.6: several in a row, and the storages behind them."""
    source = Source(file, room)
    content = Machine(source).load()
    if type(content) is int and content == _TORCH_LEGACY_MAGIC:
        return _read_torch_legacy(source, room)
    return _named(content)


def _read_torch_legacy(source: Source, room: Room) -> dict[str, np.ndarray]:
    """What comes behind the magic number."""
    for _ in ("the protocol's version", "sizes of numbers"):
        Machine(source).load()
    machine = Machine(source)
    content = machine.load()
    wanted = {tensor.storage.key for tensor in _named(content).values() if isinstance(tensor, Tensor)}
    stored = {}
    for key in Machine(source).load():
        check(type(key) is str)
        storage = machine.storages[key]
        check(source.number(8) == storage.count, WRONG_SIZE)
        if key in wanted:
            stored[key] = source.read(storage.nbytes)
        else:
            source.file.seek(storage.nbytes, os.SEEK_CUR)
    return _arrays(content, lambda storage: stored[storage.key], room)


def _read_safetensors(file: IO[bytes], room: Room) -> dict[str, np.ndarray]:
    source = Source(file, room)
    text = source.read(source.number(8))
    room.take(_JSON * len(text))
    header = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 20 else -1)
    header.pop("__metadata__", None)
    arrays, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        check(kind in _SAFETENSORS, f"it holds numbers of the kind {kind}, which no weights are")
        dtype = np.dtype(_SAFETENSORS[kind])
        check(is_shape(shape) and start == position and end - start == math.prod(shape) * dtype.itemsize)
        arrays[name] = np.frombuffer(source.read(end - start), dtype).reshape(shape)
        position = end
    check(8 + len(text) + position == room.file_size, WRONG_SIZE)
    return arrays


def _read(path: Path, title: str, read: Callable[[IO[bytes], Room], Any], what: str) -> Any:
    try:
        if not path.is_file():
            raise Refused("there is no such file", "check the path")
        with path.open("rb") as file:
            return read(file, Room(os.fstat(file.fileno()).st_size))
    except Refused as refusal:
        why = str(refusal)
    except MemoryError:
        why = "there is not enough memory to read it; use a machine with more"
    # A damaged file makes the parsers of pickles, archives and JSON, and NumPy, raise almost anything.
    except Exception as error:
        cause = getattr(error, "strerror", None)  # the system's, which is not about what is in the file
        why = f"it cannot be opened or read ({cause}); check the path" if cause else str(Refused(DAMAGED))
    raise DataError(f"{title}: expected {what}, but {why}")


def read_pickle(path: Path) -> Any:
    """What a pickle of Paddle's (`.pdparams`, `.pdopt`) holds: arrays, numbers, texts and plain containers of them.

    Raises:
        DataError: no such file, damaged, or it asks for anything else.
    """
    return _read(path, str(path), lambda file, room: Machine(Source(file, room)).load(), "a file Paddle saved")


def read_weights(path: Union[str, Path], title: str = "") -> dict[str, np.ndarray]:
    """Every array by its name, of a `.pdparams`, `.pth` or `.safetensors` file or of the only one in an archive.

    Bfloat16, which NumPy does not have, comes as uint16, as Paddle spells it; no weights are true uint16. Arrays may
    share memory and are not to be written to.

    Args:
        path: the file.
        title: what it is called in messages, if not by its path.

    Raises:
        DataError: no such file, not a weight file, damaged, or it asks for code to be run.
    """
    path = Path(path)
    return _read(
        path,
        title or str(path),
        lambda file, room: _parse(file, path.suffix, room, packed=False),
        "weights (.pdparams, .pth or .safetensors)",
    )


def _parse(file: IO[bytes], suffix: str, room: Room, *, packed: bool) -> dict[str, np.ndarray]:
    """The arrays of a weight file of any kind; `packed` if it comes out of an archive, and so is none."""
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if suffix == ".safetensors":
        arrays = _read_safetensors(file, room)
    elif head.startswith(b"PK\3\4"):
        arrays = _read_zip(file, room, packed=packed)
    elif not packed and (head.startswith(_GZIP) or head[257:262] == b"ustar"):
        arrays = _read_packed(*_only_in_tar(file, room))
    else:
        arrays = _read_pickles(file, room)
    check(bool(arrays), "it holds no arrays by name")
    # Arrays may share their numbers, and then take no memory until somebody copies them.
    size = sum(array.nbytes for array in arrays.values())
    check(size <= room.most, "its arrays share their numbers, and are more than twice as large as the file")
    return arrays


def write_weights(
    path: Union[str, Path], arrays: Mapping[str, np.ndarray], *, keep_earlier: bool = False
) -> Optional[Path]:
    """Write arrays by name, as the suffix says: `.pdparams`, which `paddle.load` reads, or `.safetensors`.

    The file appears whole or not at all.

    Args:
        keep_earlier: whether what was there is kept, under the name that is returned.

    Raises:
        UsageError: another suffix.
        DataError: it cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: weights are written as {' or '.join(_WRITERS)}, not as {path.suffix or 'this'}")
    writer = _WRITERS[path.suffix]
    return write_atomically(path, lambda file: writer(file, arrays), durable=True, keep_earlier=keep_earlier)


def _write_pickle(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    pickler = pickle.Pickler(file, protocol=4)
    pickler.fast = True  # else it would keep a copy of every array until the end
    pickler.dump(dict(arrays))


def _write_safetensors(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in _SAFETENSORS.items()}
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype.str], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(array.tobytes())


_WRITERS = {".pdparams": _write_pickle, ".safetensors": _write_safetensors}
