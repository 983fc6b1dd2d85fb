# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import zipfile

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from hmsa.errors import DataError
from hmsa.weight_files import read_weights, sha256

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array([7], np.int64)}


def assert_read(path, expected=ARRAYS):
    found = read_weights(path)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_pdparams(tmp_path):
    paddle.save({name: paddle.to_tensor(array) for name, array in ARRAYS.items()}, str(tmp_path / "w.pdparams"))
    assert_read(tmp_path / "w.pdparams")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_of_arrays(tmp_path, protocol):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(ARRAYS, protocol))
    assert_read(tmp_path / "w.pdparams")


def test_safetensors(tmp_path):
    save_file(ARRAYS, str(tmp_path / "w.safetensors"))
    assert_read(tmp_path / "w.safetensors")


class _Storage:
    """Pickles as PyTorch's storages do: by a persistent id."""

    def __init__(self, key, array):
        self.key, self.array = key, array


class _Tensor:
    """Pickles as PyTorch's tensors do: by a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, key, array, offset=0):
        self.storage, self.offset = _Storage(key, array), offset

    def __reduce__(self):
        array = self.storage.array
        strides = tuple(stride // array.itemsize for stride in array.strides)
        arguments = (self.storage, self.offset, array.shape, strides, False, {})
        return _named("torch._utils", "_rebuild_tensor_v2"), arguments


def _named(module, name):
    """A stand-in that pickles as the global `module.name`."""
    return type(name, (), {"__module__": module, "__reduce_ex__": None})


class _TorchPickler(pickle._Pickler):
    """Writes what PyTorch writes, without PyTorch."""

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            kind = {"float32": "FloatStorage", "int64": "LongStorage"}[obj.array.dtype.name]
            return ("storage", _named("torch", kind), obj.key, "cpu", obj.array.size)
        return None

    def save_global(self, obj, name=None):
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())


def torch_pickle(obj):
    import io

    buffer = io.BytesIO()
    _TorchPickler(buffer, protocol=2).dump(obj)
    return buffer.getvalue()


def torch_checkpoint():
    tensors = {name: _Tensor(str(index), array) for index, (name, array) in enumerate(ARRAYS.items())}
    return {"epoch": 3, "state_dict": tensors}


def test_torch_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", torch_pickle(torch_checkpoint()))
        for index, array in enumerate(ARRAYS.values()):
            archive.writestr(f"w/data/{index}", array.tobytes())
    assert_read(tmp_path / "w.pth")


def test_torch_legacy(tmp_path):
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [torch_pickle(torch_checkpoint()), pickle.dumps(["0", "1"], 2)]
    parts += [array.size.to_bytes(8, "little") + array.tobytes() for array in ARRAYS.values()]
    (tmp_path / "w.pth").write_bytes(b"".join(parts))
    assert_read(tmp_path / "w.pth")


class _RunsACommand:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"w": x}, lambda x: {**ARRAYS, "w": [x]}])
def test_code_is_refused_by_name_and_not_run(tmp_path, wrap):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(wrap(_RunsACommand(tmp_path / "ran"))))
    with pytest.raises(DataError, match=r"w\.pdparams.*system"):
        read_weights(tmp_path / "w.pdparams")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 1})])
def test_other_files_are_an_error_that_names_them(tmp_path, content):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pdparams"):
        read_weights(tmp_path / "w.pdparams")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.pdparams"):
        read_weights(tmp_path / "nowhere.pdparams")


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", torch_pickle({"a": _Tensor("0", ARRAYS["a"], offset=3)}))
        archive.writestr("w/data/0", ARRAYS["a"].tobytes())
    with pytest.raises(DataError, match="beyond its storage"):
        read_weights(tmp_path / "w.pth")


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf8f01cfea")
