# SPDX-License-Identifier: Apache-2.0
"""Reading weight files as arrays, whoever wrote them, and writing them.

`.pdparams` and `.pth` are pickles (see `hmsa.pickles`); `.safetensors` holds nothing but arrays. Reading executes
nothing that is in a file, unpacks nothing to the disk, and takes no more memory than twice the file's size and 64 MiB.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Callable, Union

import numpy as np

from hmsa.errors import DataError, UsageError
from hmsa.files import write_atomically
from hmsa.pickles import DAMAGED, WRONG_SIZE, Machine, Refused, Room, Source, Storage, Tensor, check, is_shape

_BIG_ENDIAN = "it was written on a big-endian machine"

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
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_JSON = 40  # Bytes, at most, that Python makes of one byte of JSON.
_ZIP = 16  # Bytes, at most, that Python makes of one byte of a zip's list of contents.


def _named(content: Any) -> dict[str, Any]:
    """The arrays and tensors in what a pickle held, by name; those of a checkpoint are under `state_dict`."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if type(value) is tuple and len(value) == 2:  # Paddle's spelling of a tensor
            value = value[1]
        if isinstance(name, str) and isinstance(value, (np.ndarray, Tensor)):
            found[name] = value
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


def _read_torch_zip(file: IO[bytes], room: Room) -> dict[str, np.ndarray]:
    """PyTorch's format since 1.6: a zip with the pickle and one file a storage."""
    listing = _Listing(file, room)
    with zipfile.ZipFile(listing) as archive:  # type: ignore[arg-type]
        listing.weight = 0  # What is read from here on is counted in `read`.
        roots = [name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("data.pkl")]
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

        if f"{roots[0]}byteorder" in archive.NameToInfo:
            check(read("byteorder") == b"little", _BIG_ENDIAN)
        return _arrays(Machine(Source(io.BytesIO(read("data.pkl")), room)).run(), read_storage, room)


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
    content = Machine(source).run()
    if type(content) is int and content == _TORCH_LEGACY_MAGIC:
        return _read_torch_legacy(source, room)
    return _named(content)


def _read_torch_legacy(source: Source, room: Room) -> dict[str, np.ndarray]:
    """What comes behind the magic number."""
    Machine(source).run()  # the protocol's version
    check(Machine(source).run()["little_endian"], _BIG_ENDIAN)
    machine = Machine(source)
    content = machine.run()
    wanted = {tensor.storage.key for tensor in _named(content).values() if isinstance(tensor, Tensor)}
    stored = {}
    for key in Machine(source).run():
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


def _read(path: Path, read: Callable[[IO[bytes], Room], Any], what: str) -> Any:
    try:
        if not path.is_file():
            raise DataError(f"{path}: expected {what}, but there is no such file; check the path")
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: expected {what}, but it cannot be opened ({error.strerror}); check the path"
        ) from error
    with file:
        try:
            return read(file, Room(os.fstat(file.fileno()).st_size))
        except Refused as refusal:
            why = str(refusal)
        except MemoryError:
            why = "there is not enough memory to read it"
        except OSError as error:
            why = f"{DAMAGED} ({error.strerror})"
        # A damaged file makes the parsers of pickles, zips and JSON, and NumPy, raise almost anything.
        except Exception:
            why = DAMAGED
    raise DataError(f"{path}: expected {what}, but {why}; get it again from a place you trust")


def read_pickle(path: Path) -> Any:
    """What a pickle of Paddle's (`.pdparams`, `.pdopt`) holds: arrays, numbers, texts and plain containers of them.

    Raises:
        DataError: no such file, damaged, or it asks for anything else.
    """
    return _read(path, lambda file, room: Machine(Source(file, room)).run(), "a file Paddle saved")


def read_weights(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """Every array of a `.pdparams`, `.pth` or `.safetensors` file by its name.

    Bfloat16, which NumPy does not have, comes as uint16, as Paddle spells it; no weights are true uint16. Arrays may
    share memory and are not to be written to.

    Raises:
        DataError: no such file, not a weight file, damaged, or it asks for code to be run.
    """
    path = Path(path)

    def read(file: IO[bytes], room: Room) -> dict[str, np.ndarray]:
        if path.suffix == ".safetensors":
            arrays = _read_safetensors(file, room)
        else:
            is_zip = file.read(4) == b"PK\3\4"
            file.seek(0)
            arrays = (_read_torch_zip if is_zip else _read_pickles)(file, room)
        check(bool(arrays), "it holds no arrays by name")
        # Arrays may share their numbers, and then take no memory until somebody copies them.
        size = sum(array.nbytes for array in arrays.values())
        check(size <= room.most, "its arrays share their numbers, and are more than twice as large as the file")
        return arrays

    return _read(path, read, "weights (.pdparams, .pth or .safetensors)")


def write_weights(path: Union[str, Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, as the suffix says: `.pdparams`, which `paddle.load` reads, or `.safetensors`.

    The file appears whole or not at all.

    Raises:
        UsageError: another suffix.
        DataError: it cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: weights are written as {' or '.join(_WRITERS)}, not as {path.suffix or 'this'}")
    write_atomically(path, lambda file: _WRITERS[path.suffix](file, arrays), durable=True)


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


def sha256(path: Union[str, Path]) -> str:
    """The file's SHA-256 in hexadecimal. DataError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()
