# SPDX-License-Identifier: Apache-2.0
"""Reading weight files as arrays, without ever executing what a file says.

`.pdparams` and `.pth` are pickles, and a pickle may name any function to call. The unpickler here knows the handful of
names that arrays need and refuses all others. `.safetensors` holds nothing but arrays.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
from numpy.core import multiarray

from hmsa.errors import DataError

_TORCH_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<u1",
}
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _encode(text: str, encoding: str) -> bytes:
    """How old pickles spell bytes: latin-1 text to be encoded."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode(encoding)


def _from_buffer(data: bytes, dtype: np.dtype, shape: tuple, order: Any) -> np.ndarray:
    """How pickles of protocol 5 spell an array."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: object) -> np.ndarray:
    """A PyTorch tensor as a copy of its part of the storage."""
    last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if size else offset
    if min((*size, *stride, offset), default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _rebuild_parameter(data: np.ndarray, *_: object) -> np.ndarray:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _TORCH_DTYPES.items()},
    **{
        (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain containers; any other name is an error."""

    def __init__(self, file: IO[bytes], storages: Any = None) -> None:
        super().__init__(file, encoding="latin1")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        if self._storages is None:
            raise pickle.UnpicklingError("it refers to data outside itself")
        _, dtype, key, _, count, *_ = pid
        return self._storages(str(key), np.dtype(dtype), int(count))


def _read_torch_zip(path: Path) -> Any:
    """PyTorch's format since 1.6: a zip with the pickle and one file a storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((name[: -len("data.pkl")] for name in names if name.endswith("data.pkl")), None)
        if root is None:
            raise pickle.UnpicklingError("the zip holds no data.pkl")

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size != count * dtype.itemsize or info.file_size > path.stat().st_size:
                raise pickle.UnpicklingError(f"storage {key} does not have the size it claims")
            return np.frombuffer(archive.read(info), dtype)

        with archive.open(f"{root}data.pkl") as file:
            return _ArrayUnpickler(file, storage).load()


def _read_torch_legacy(file: IO[bytes]) -> Any:
    """PyTorch's format before 1.6: pickles in a row, the storages' bytes behind them."""
    for _ in range(2):  # protocol version, system information
        _ArrayUnpickler(file).load()
    start = file.tell()
    sizes: dict[str, tuple[np.dtype, int]] = {}

    def measure(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        sizes[key] = (dtype, count)
        return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), (count,), (0,))

    # The bytes stand behind the pickle: read it once for the sizes, then the bytes, then once more for the tensors.
    _SizesOnly(file, measure).load()
    storages = {}
    for key in _ArrayUnpickler(file).load():
        dtype, count = sizes[str(key)]
        stored = int.from_bytes(file.read(8), "little")
        data = file.read(count * dtype.itemsize)
        if stored != count or len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} does not have the size it claims")
        storages[str(key)] = np.frombuffer(data, dtype)
    file.seek(start)
    return _ArrayUnpickler(file, lambda key, dtype, count: storages[key]).load()


class _SizesOnly(_ArrayUnpickler):
    """Walks a pickle for the storages it names and builds no tensor."""

    def find_class(self, module: str, name: str) -> Any:
        known = super().find_class(module, name)
        return (lambda *_: None) if known in (_rebuild_tensor, _rebuild_parameter) else known


def read_pickle(path: Path) -> Any:
    """What a pickle (`.pdparams`, `.pdopt`, `.pth`) holds: arrays, numbers, texts and plain containers of them.

    Raises:
        Exception: of any kind, if the file is damaged or asks for anything else.
    """
    if zipfile.is_zipfile(path):
        return _read_torch_zip(path)
    with path.open("rb") as file:
        content = _ArrayUnpickler(file).load()
        return _read_torch_legacy(file) if content == _TORCH_LEGACY_MAGIC else content


def read_weights(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """Every array of a `.pdparams`, `.pth` or `.safetensors` file by its name.

    Raises:
        DataError: no such file, not a weight file, damaged, or it asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a weight file, found none; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            content = load_file(path)
        else:
            content = read_pickle(path)
    except Exception as error:
        raise DataError(
            f"{path}: expected weights (.pdparams, .pth or .safetensors), found a file that cannot be read as "
            f"such: {error}"
        ) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)} if isinstance(content, dict) else {}
    if not arrays:
        raise DataError(f"{path}: expected arrays by name, found none; it is not a weight file")
    return arrays


def sha256(path: Union[str, Path]) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
