# SPDX-License-Identifier: Apache-2.0
"""Running pickles that strangers wrote.

A pickle is a program that may name any function to call and ask for any amount of memory. The small machine here runs
the part that arrays, numbers, texts and plain containers need. It calls a handful of functions, refuses all other
names, and counts what it makes against the size of the file.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import IO, Any, Callable, NoReturn, cast

import numpy as np

BASE = 64 << 20
"""Bytes that reading a file may take besides twice its size."""

DAMAGED = "it is damaged or of another kind"
WRONG_SIZE = "its arrays do not have the sizes it claims"

_OBJECT = 256  # Bytes, at most, of what an instruction makes besides texts and numbers.
_LONGEST_NAME = 256  # of a module and a function
_MAX_SIDES = 32  # of an array


class Refused(ValueError):
    """Why a file is not read, and what to do, as the end of a sentence."""

    def __init__(self, reason: str, advice: str = "get it again from a place you trust") -> None:
        super().__init__(f"{reason}; {advice}")


def check(good: bool, otherwise: str = DAMAGED) -> None:
    """Refused unless `good`."""
    if not good:
        raise Refused(otherwise)


def is_shape(value: Any) -> bool:
    """Whether this is the shape of an array: a tuple of numbers, none negative and not too many."""
    return type(value) is tuple and len(value) <= _MAX_SIDES and all(type(n) is int and n >= 0 for n in value)


class Room:
    """Memory that reading a file may still take. What is to be made is counted first."""

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.left = self.most = 2 * file_size + BASE

    def take(self, size: int) -> None:
        """Refused if there is not so much left. What is given back has a negative size."""
        self.left -= size
        check(self.left >= 0, "reading it would take more than twice its size in memory")


class Source:
    """A file of which every byte that is read is counted."""

    def __init__(self, file: IO[bytes], room: Room) -> None:
        self.file = file
        self.room = room

    def read(self, size: int) -> bytes:
        check(0 <= size <= self.room.file_size, "it ends too early")
        self.room.take(size)
        data = self.file.read(size)
        check(len(data) == size, "it ends too early")
        return data

    def readline(self) -> bytes:
        line = self.file.readline(_LONGEST_NAME)
        check(line.endswith(b"\n"))
        return line

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")


@dataclass(frozen=True)
class Storage:
    """Numbers of PyTorch's that are outside the pickle."""

    key: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Tensor:
    """A part of a storage; offset and strides count its numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_DTYPES = ("b1", "f2", "f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)))


def _dtype(code: Any, *_: object) -> np.dtype:
    check(type(code) is str)
    check(code in _DTYPES, f"it holds an array of dtype {code[:20]!r}, and weights are plain numbers")
    return np.dtype(code)


def _new_array(kind: Any, *_: object) -> np.ndarray:
    """An array whose shape and numbers the instruction BUILD will bring."""
    check(type(kind) is str and kind == "ndarray")
    return np.empty(0, np.uint8)


def _numbers(data: Any, dtype: Any) -> np.ndarray:
    check(type(data) is bytes and isinstance(dtype, np.dtype))
    return np.frombuffer(data, dtype)


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """How pickles of protocol 5 spell an array."""
    check(is_shape(shape) and type(order) is str)
    return _numbers(data, dtype).reshape(shape, order=cast(Any, order))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    check(isinstance(storage, Storage) and is_shape((offset,)) and is_shape(size) and is_shape(stride))
    check(len(size) == len(stride))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    check(0 in size or last < storage.count, "a tensor reaches beyond its storage")
    return Tensor(storage, offset, size, stride)


def _tuple(items: Any) -> tuple:
    """How Paddle spells a tensor: its name and its array."""
    check(type(items) is tuple)
    return items


TORCH_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<u1",
}

# What a pickle may name. What is a function here can be called; `encode` is a method of the machine.
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": lambda: {},  # noqa: PIE807 - dict itself takes arguments
    **{f"{builtins}.tuple": _tuple for builtins in ("builtins", "__builtin__")},
    # How old pickles spell no data.
    **{f"{builtins}.bytes": lambda: b"" for builtins in ("builtins", "__builtin__")},
    "numpy.ndarray": "ndarray",
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _new_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": lambda dtype, data: _numbers(data, dtype)[0] for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_buffer for core in ("core", "_core")},
    **{f"torch.{name}": dtype for name, dtype in TORCH_STORAGES.items()},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}

# Instructions that do no more here than in Python's own machine.
_PLAIN = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "MARK", "APPEND", "APPENDS"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID", "PROTO", "STOP"),
)
_TEXTS = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}  # bytes that tell the length

_Unpickler: Any = pickle._Unpickler  # type: ignore
"""Python's own machine, in Python: it does not recurse, so that no nesting is too deep."""


class _Instructions(dict):
    """By number: each counts what it makes; those that are not here are refused."""

    def __setitem__(self, name: str, run: Callable[[Any], None]) -> None:
        def counted(machine: Machine) -> None:
            machine.source.room.take(_OBJECT)
            run(machine)

        super().__setitem__(getattr(pickle, name)[0], counted)

    def __missing__(self, code: int) -> NoReturn:
        name = next((name for name in pickle.__all__ if getattr(pickle, name) == bytes([code])), "")
        check(not name, f"it uses the pickle instruction {name}, which no weights need and which was not run")
        raise Refused(DAMAGED)


class Machine(_Unpickler):
    """Runs pickles of protocols 2 to 5; `load` returns the result of the next one in the file.

    It raises Refused where a pickle asks for something that no weights need, or for too much memory, and an exception
    of any other kind where it is damaged.
    """

    dispatch = _Instructions()

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.source = source
        self.storages: dict[str, Storage] = {}
        """Those that the pickles have named."""
        self._known = {**_KNOWN, "_codecs.encode": self._encode}

    def find_class(self, module: Any, name: Any) -> Any:
        called = f"{module}.{name}"
        known = called in self._known
        check(known, f"it asks for {called[:_LONGEST_NAME]}, which no weights need and which was not run")
        return self._known[called]

    def persistent_load(self, reference: Any) -> Storage:
        """PyTorch's reference to numbers outside the pickle."""
        kind, dtype, key, _, count, *view = reference
        check(kind == "storage" and dtype in TORCH_STORAGES.values() and type(key) is str and is_shape((count,)))
        storage = Storage(key, dtype, count)
        check(view in ([], [None]) and self.storages.setdefault(key, storage) == storage)
        return storage

    def put(self, items: list[Any]) -> None:
        """Keys and values in turn, into the dictionary on the stack."""
        for key, value in zip(items[::2], items[1::2]):
            # Any other key can be made so that finding its place takes for ever, or more stack than there is.
            check(type(self.stack[-1]) is dict and (type(key) is str or (type(key) is int and abs(key) < 1 << 60)))
            self.stack[-1][key] = value

    def pop(self, count: int) -> list[Any]:
        """The last things on the stack."""
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def text(self, size: int) -> str:
        data, room = self.source.read(size), self.source.room
        # Old pickles spell data as text, where a character is one byte in memory: one that needs more is rare.
        narrow = data.isascii() or np.frombuffer(data, np.uint8).max() < 0xC4
        room.take(len(data) * (1 if narrow else 4))
        text = data.decode("utf-8", "surrogatepass")
        room.take(-len(data))
        return text

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How old pickles spell data."""
        check(type(text) is str and type(encoding) is str and encoding in ("latin1", "latin-1"))
        self.source.room.take(len(text))
        return text.encode("latin1")


def _build(target: Any, state: Any) -> None:
    """Give an object what it holds."""
    if isinstance(target, np.ndarray):
        _, shape, dtype, is_fortran, data = state
        check(is_shape(shape) and math.prod(shape) == _numbers(data, dtype).size, WRONG_SIZE)
        cast(Any, target).__setstate__((1, shape, dtype, bool(is_fortran), data))
    elif isinstance(target, np.dtype):
        plain = state[1] in ("<", "|") and all(part is None for part in state[2:5])
        check(plain, "it holds an array that is big-endian or has parts, and weights are plain numbers")
    else:
        check(type(target) is dict)  # PyTorch's notes on a dictionary, which are not needed


for _name in _PLAIN:
    Machine.dispatch[_name] = _Unpickler.dispatch[getattr(pickle, _name)[0]]
for _name, _size in _TEXTS.items():
    Machine.dispatch[_name] = lambda machine, size=_size: machine.append(machine.text(machine.source.number(size)))
Machine.dispatch["BYTEARRAY8"] = lambda machine: machine.append(machine.source.read(machine.source.number(8)))
Machine.dispatch["FRAME"] = lambda machine: machine.source.number(8)  # how much can be read at once
Machine.dispatch["SETITEM"] = lambda machine: machine.put(machine.pop(2))
Machine.dispatch["SETITEMS"] = lambda machine: machine.put(machine.pop_mark())
Machine.dispatch["BUILD"] = lambda machine: _build(machine.stack[-2], machine.pop(1)[0])
