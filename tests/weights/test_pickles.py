# SPDX-License-Identifier: Apache-2.0
"""Pickles that would run something, made as an attacker makes them."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from hmsa.errors import DataError
from hmsa.weights.files import read_pickle, read_weights
from hmsa.weights.pickles import Machine, Room, Source

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    """Pickles as an OrderedDict that is given `state`."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return OrderedDict, (), self.state


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def touch(marker) -> str:
    return f"touch '{marker}'"


def python(marker) -> str:
    return f"open({str(marker)!r}, 'w').close()"


# Marker -> a pickle that makes it when it is loaded, and what the refusal must name.
CALLS = {
    "os.system": (lambda m: Call(os.system, touch(m)), r"(posix|nt)\.system"),
    "eval": (lambda m: Call(eval, python(m)), r"builtins\.eval"),
    "exec": (lambda m: Call(exec, python(m)), r"builtins\.exec"),
    "Popen": (lambda m: Call(subprocess.Popen, ["touch", str(m)]), r"(subprocess|commands)\.Popen"),
    "check_call": (lambda m: Call(subprocess.check_call, ["touch", str(m)]), r"(subprocess|commands)\.check_call"),
    "__import__": (lambda m: Call(__import__, "antigravity"), r"builtins\.__import__"),
    "getattr": (lambda m: Call(getattr, "text", "upper"), r"builtins\.getattr"),
    "list of map": (lambda m: Call(list, Call(map, os.system, [touch(m)])), r"builtins\.list"),
}
PLACES = {
    "alone": lambda x: x,
    "in a dictionary": lambda x: {"a": ARRAY, "w": x},
    "deep": lambda x: {"a": ARRAY, "w": [(1, {"x": OrderedDict(y=[x])})]},
    "as a state": lambda x: {"a": ARRAY, "w": State({"_metadata": x})},
    "in an array": lambda x: {"a": np.array([None, x])},
}


def assert_refused(path, marker, named):
    with pytest.raises(DataError, match=rf"{path.name}: expected .*{named}"):
        read_weights(path)
    with pytest.raises(DataError, match=rf"{path.name}: expected .*{named}"):
        read_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_refused_by_name(tmp_path, call, protocol):
    make, named = CALLS[call]
    if protocol < 3:
        named = named.replace("builtins", "__builtin__")
    path, marker = tmp_path / "w.pdparams", tmp_path / "ran"
    path.write_bytes(pickle.dumps(make(marker), protocol))
    assert_refused(path, marker, rf"it asks for {named}, which no weights need and which was not run")


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands(tmp_path, place):
    path, marker = tmp_path / "w.pdparams", tmp_path / "ran"
    path.write_bytes(pickle.dumps(PLACES[place](Call(os.system, touch(marker)))))
    pickle.load(path.open("rb"))
    assert marker.exists()  # It is a true attack.
    marker.unlink()
    assert_refused(path, marker, r"dtype 'O8'" if place == "in an array" else r"asks for posix\.system")


# Instructions that make or call something in other ways; `touch marker` in place of %s.
INSTRUCTIONS = {
    "GLOBAL": (lambda m: b"cos\nsystem\n" + text(touch(m)) + b"\x85R.", r"os\.system"),
    "STACK_GLOBAL": (lambda m: text("os") + text("system") + b"\x93" + text(touch(m)) + b"\x85R.", r"os\.system"),
    "INST": (lambda m: b"(" + text(touch(m)) + b"ios\nsystem\n.", "INST"),
    "OBJ": (lambda m: b"(cos\nsystem\n" + text(touch(m)) + b"o.", r"os\.system"),
    "NEWOBJ": (lambda m: b"cos\n_Environ\n(}NNNNt\x81.", r"os\._Environ"),
    "NEWOBJ of a known class": (lambda m: b"cnumpy\nndarray\n((K\x01tt\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (lambda m: b"ccollections\nCounter\n)}" + text("a") + b"K\x01s\x92.", r"collections\.Counter"),
    "EXT1": (lambda m: b"\x82\xf0" + text(touch(m)) + b"\x85R.", "EXT1"),
    "PERSID": (lambda m: b"Pos.system\n.", "PERSID"),
    "encode": (lambda m: b"c_codecs\nencode\n" + text("abc") + text("rot13") + b"\x86R.", "damaged"),
    "decode": (lambda m: b"c_codecs\ndecode\n" + text("abc") + text("rot13") + b"\x86R.", r"_codecs\.decode"),
    "scalar of objects": (
        lambda m: b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("O8") + b"\x85RC\x01.\x86R.",
        "dtype 'O8'",
    ),
    "parts": (
        lambda m: b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("|") + b"N" + text("a") + b"\x85}tb.",
        "has parts",
    ),
    "shape in a dtype": (lambda m: b"cnumpy\ndtype\n" + text("(9,9)f4") + b"\x85R.", r"dtype '\(9,9\)f4'"),
    "numpy.load": (lambda m: b"cnumpy\nload\n" + text(str(m)) + b"\x85R.", r"numpy\.load"),
    "calling ndarray": (lambda m: b"cnumpy\nndarray\n" + b"K\x01\x85\x85R.", "damaged"),
    "calling a text": (lambda m: text("os.system") + b")R.", "damaged"),
    "PyTorch's bytes": (
        lambda m: b"ctorch.storage\n_load_from_bytes\nC\x01.\x85R.",
        r"torch\.storage\._load_from_bytes",
    ),
    "PyTorch's types": (lambda m: b"ctorch._tensor\n_rebuild_from_type_v2\n)R.", r"_rebuild_from_type_v2"),
    "giving a list a state": (lambda m: b"]}" + text("__class__") + b"Nsb.", "damaged"),
    "a huge number": (lambda m: b"\x8b\xff\xff\xff\x7f", "LONG4"),
    "terminal": (lambda m: b"c\x1b[2Jos\nsystem\n.", r"\\x1b\[2Jos\.system"),
}


@pytest.fixture(scope="module")
def registered():
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("how", INSTRUCTIONS)
def test_other_ways_to_run_something(tmp_path, registered, how):
    make, named = INSTRUCTIONS[how]
    marker = tmp_path / "ran"
    attack = b"\x80\x04" + make(marker)
    if touch(marker).encode() in attack:
        assert pickle.loads(attack) == 0
        assert marker.exists()  # It is a true attack.
        marker.unlink()
    path = tmp_path / "w.pdparams"
    path.write_bytes(attack)
    assert_refused(path, marker, named)

    path = tmp_path / "zip.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", attack)
    with pytest.raises(DataError, match=rf"zip\.pth: expected .*{named}"):
        read_weights(path)
    path = tmp_path / "legacy.pth"
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + attack)
    with pytest.raises(DataError, match=rf"legacy\.pth: expected .*{named}"):
        read_weights(path)
    assert not marker.exists()


def run(data: bytes):
    return Machine(Source(io.BytesIO(data), Room(len(data)))).load()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_objects_are_what_they_were(protocol):
    plain = {
        "numbers": [0, 255, 65536, -1, 2**31, -(2**40), 1.5, True, False, None],
        "texts": ["", "a" * 300, "ä€\U0001f600", "\ud800"],
        "bytes": [b"", b"\0\xff", bytes(range(256)) * 2],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "nested": {"a": {1: [{}]}, "b": OrderedDict(c=2)},
        "scalar": np.float64(0.5),
    }
    assert run(pickle.dumps(plain, protocol)) == plain


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
def test_arrays_are_what_they_were(protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    given = [array, array.T, array[:, 1:], array[0, 0, 0:0], np.array(1, dtype), np.ones(2000, dtype)]
    for found, expected in zip(run(pickle.dumps(given, protocol)), given):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_the_same_array_twice_is_one():
    found = run(pickle.dumps({"a": ARRAY, "b": ARRAY}))
    assert found["a"] is found["b"]


def test_only_what_is_listed_can_be_called():
    """None of the functions is a builtin or a class, which could do more than arrays need."""
    known = Machine(Source(io.BytesIO(b""), Room(0)))._known
    callables = [function for function in known.values() if callable(function)]
    assert len(callables) >= 10
    assert all(function.__module__ == "hmsa.weights.pickles" for function in callables)
    assert not any(function in vars(builtins).values() for function in callables)
