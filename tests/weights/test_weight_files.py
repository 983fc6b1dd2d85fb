# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import fuzz_weights
import numpy as np
import paddle
import pytest
from safetensors import deserialize
from safetensors.numpy import save_file

from hmsa.errors import DataError, UsageError
from hmsa.system.files import sha256
from hmsa.weights.files import read_pickle, read_weights, write_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array([7], np.int64)}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves(tmp_path, protocol):
    path = tmp_path / "w.pdparams"
    paddle.save({name: paddle.to_tensor(array) for name, array in ARRAYS.items()}, str(path), protocol=protocol)
    assert_equal(read_weights(path), ARRAYS)
    network = paddle.nn.Linear(2, 3)
    paddle.save(network.state_dict(), str(path), protocol=protocol)
    assert_equal(read_weights(path), {name: value.numpy() for name, value in network.state_dict().items()})
    nested = {"state_dict": {"a": paddle.to_tensor(ARRAYS["a"])}, "epoch": 3}
    paddle.save(nested, str(path), protocol=protocol)
    assert_equal(read_weights(path), {"a": ARRAYS["a"]})


def test_paddles_bfloat16_is_uint16(tmp_path):
    paddle.save({"a": paddle.to_tensor([1.0, -2.5]).astype("bfloat16")}, str(tmp_path / "w.pdparams"))
    assert_equal(read_weights(tmp_path / "w.pdparams"), {"a": np.array([0x3F80, 0xC020], np.uint16)})


def test_an_optimizers_state(tmp_path):
    layer = paddle.nn.Linear(2, 3)
    schedule = paddle.optimizer.lr.PolynomialDecay(0.1, 10)
    optimizer = paddle.optimizer.Momentum(schedule, parameters=layer.parameters())
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    paddle.save(optimizer.state_dict(), str(tmp_path / "w.pdopt"))
    found = read_pickle(tmp_path / "w.pdopt")
    assert found["LR_Scheduler"] == {"last_epoch": 0, "last_lr": 0.1}
    velocities = [value for name, value in found.items() if name.endswith("velocity_0")]
    assert sorted(value.shape for value in velocities) == [(2, 3), (3,)]


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_pytorch_saves(form):
    """A checkpoint of a wrapped network with views, all dtypes and an optimizer; see golden/torch_files.py."""
    found = read_weights(GOLDEN / f"torch_{form}.pth")
    expected = dict(np.load(GOLDEN / "torch_expected.npz"))
    assert len(expected) == 20
    bfloat16 = expected.pop("bfloat16")
    assert_equal({"bfloat16": (found.pop("bfloat16").astype(np.uint32) << 16).view(np.float32)}, {"bfloat16": bfloat16})
    assert_equal(found, expected)


def test_safetensors(tmp_path):
    kinds = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?"]
    arrays = {kind: np.arange(6).reshape(3, 2).astype(kind) for kind in kinds}
    arrays["scalar"], arrays["empty"] = np.array(3, np.float32), np.zeros((0, 2), np.float32)
    path = tmp_path / "w.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    found = read_weights(path)
    assert_equal({name: found[name] for name in arrays}, arrays)


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_what_is_written_is_read(tmp_path, suffix):
    arrays = {
        **ARRAYS,
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 2), np.float32),
        "half": np.array([1, 2], np.float16),
        "bfloat16": np.array([0x3F80], np.uint16),
        "large": np.random.default_rng(0).normal(size=(300, 301)).astype(np.float32),
        "Gewicht ü\n": np.ones(1, np.float32),
    }
    path = tmp_path / "folder" / f"w{suffix}"
    write_weights(path, arrays)
    assert_equal(read_weights(path), arrays)
    assert list(path.parent.iterdir()) == [path]
    if suffix == ".pdparams":
        assert_equal({name: value.numpy() for name, value in paddle.load(str(path)).items()}, arrays)
    else:
        theirs = dict(deserialize(path.read_bytes()))
        assert {name: (tuple(value["shape"]), bytes(value["data"])) for name, value in theirs.items()} == {
            name: (array.shape, array.tobytes()) for name, array in arrays.items()
        }
        assert [theirs[name]["dtype"] for name in ("a", "b.c", "half", "bfloat16")] == ["F32", "I64", "F16", "BF16"]


def test_other_suffixes_are_not_written(tmp_path):
    with pytest.raises(UsageError, match=r"w\.pth: weights are written as \.pdparams or \.safetensors, not as \.pth"):
        write_weights(tmp_path / "w.pth", ARRAYS)


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    write_weights(path, ARRAYS)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"w\.\w+: cannot be written \(File too large\)"):
            write_weights(path, {**ARRAYS, "large": np.zeros(20_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def whole(*values: int) -> bytes:
    return b"".join(b"\x8a\x08" + value.to_bytes(8, "little", signed=True) for value in values)


def storage(key: bytes, count: int) -> bytes:
    """A pickle's reference to a storage of float32."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("cpu") + whole(count) + b"tQ"


def tensors(
    count: int, size: tuple[int, ...], stride: tuple[int, ...], *, numbers: int, key: bytes = text("0")
) -> bytes:
    """A pickle of `count` tensors that are views of the same storage."""
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, numbers) + whole(0)
    one += b"(" + whole(*size) + b"t(" + whole(*stride) + b"t\x89}tR"
    return b"\x80\x02}(" + b"".join(text(f"t{index}") + one for index in range(count)) + b"u."


def torch_zip(pickled: bytes, stored: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in stored.items():
            archive.writestr(name, data)
    return file.getvalue()


def torch_legacy(pickled: bytes, keys: bytes, stored: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + keys + stored


def safetensors(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def listing(entries: int) -> bytes:
    """A zip whose list of contents is all there is."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, *[0] * 8, 4, *[0] * 6)
    names = b"".join(entry + f"{index % 65536:04x}".encode() for index in range(entries))
    return b"PK\3\4" + names + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(names), 4, 0)


def of_one_type(shape: list, begin: int, end: int, kind: str = "U8") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def tar(*entries: tuple[str, bytes | int], kind: bytes = tarfile.REGTYPE, mode: str = "w:gz") -> bytes:
    """A tar of names and contents; a number stands for so many zeros."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            member.size = content if isinstance(content, int) else len(content)
            archive.addfile(member, io.BytesIO(bytes(content)))
    return file.getvalue()


def archived(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of names and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def claimed_header() -> bytes:
    """A tar whose first name is said to be a terabyte long."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(20_000_000))


DEEP = b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple
MUCH = "more than twice its size in memory"
SHORT = "it ends too early"
SHARED = "its arrays share their numbers"
NONE = "it holds no arrays by name"
DAMAGED = "it is damaged or of another kind"
ZEROS = np.zeros(500_000, np.float32)
UNPACKS = "it is an archive that unpacks to more than 4 times its size"
PICKLED = pickle.dumps(ARRAYS, 4)

# Small files that would take gigabytes, hours or the whole stack if they were believed.
BOMBS = {
    "objects.pdparams": (lambda: b"\x80\x02" + b"}" * 2_000_000 + b".", MUCH),
    "marks.pdparams": (lambda: b"\x80\x02" + b"(" * 2_000_000 + b".", MUCH),
    "claimed_data.pdparams": (lambda: b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc", SHORT),
    "claimed_array.pdparams": (lambda: b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc", SHORT),
    "claimed_text.pdparams": (lambda: b"\x80\x04\x8d" + b"\xff" * 8 + b"abc", SHORT),
    "claimed_frame.pdparams": (lambda: b"\x80\x04\x95" + (1 << 50).to_bytes(8, "little") + b"}.", NONE),
    "memo.pdparams": (lambda: b"\x80\x02}r\xff\xff\xff\xff.", NONE),
    "wide_texts.pdparams": (lambda: b"\x80\x02" + text("a" * 999_999 + "\U0001f600") * 60 + b".", MUCH),
    "encoded_again.pdparams": (
        lambda: b"\x80\x02" + text("a" * 999_999) + b"q\0" + b"c_codecs\nencode\nh\0" + text("latin1") + b"\x86R" * 99,
        DAMAGED,
    ),
    "encoded_often.pdparams": (
        lambda: (
            b"\x80\x02" + text("a" * 999_999) + b"q\0" + (b"c_codecs\nencode\nh\0" + text("latin1") + b"\x86R") * 99
        ),
        MUCH,
    ),
    "deep_list.pdparams": (lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", NONE),
    "deep_key.pdparams": (lambda: b"\x80\x02}" + DEEP + b"K\1s.", DAMAGED),
    "deep_name.pdparams": (lambda: b"\x80\x04" + text("os") + DEEP + b"\x93.", DAMAGED),
    "deep_dtype.pdparams": (lambda: b"\x80\x02cnumpy\ndtype\n" + DEEP + b"\x85R.", DAMAGED),
    "colliding_keys.pdparams": (
        lambda: (
            b"\x80\x02}("
            + b"".join(b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(90_000))
            + b"u."
        ),
        DAMAGED,
    ),
    "holds_itself.pdparams": (lambda: b"\x80\x02}q\0" + text("state_dict") + b"h\0s.", NONE),
    "array_often.pdparams": (lambda: pickle.dumps(dict.fromkeys(map(str, range(100)), ZEROS)), SHARED),
    "claimed_shape.pdparams": (
        lambda: pickle.dumps({"a": np.zeros(255, "u1")}, 4).replace(b"K\xff\x85", b"J\xff\xff\xff\x7f\x85"),
        "do not have the sizes",
    ),
    "copies.pth": (
        lambda: torch_zip(tensors(99, (500, 1000), (1, 500), numbers=500_000), {"archive/data/0": ZEROS.tobytes()}),
        MUCH,
    ),
    "views.pth": (
        lambda: torch_zip(tensors(99, (500_000,), (1,), numbers=500_000), {"archive/data/0": ZEROS.tobytes()}),
        SHARED,
    ),
    "expanded.pth": (
        lambda: torch_zip(tensors(1, (1 << 20, 1 << 20), (0, 0), numbers=1), {"archive/data/0": bytes(4)}),
        MUCH,
    ),
    "overflowing.pth": (
        lambda: torch_zip(tensors(1, (1 << 60, 1 << 60), (0, 0), numbers=1), {"archive/data/0": bytes(4)}),
        DAMAGED,
    ),
    "beyond.pth": (
        lambda: torch_zip(tensors(1, (2, 2), (2, 1), numbers=3), {"archive/data/0": bytes(12)}),
        "a tensor reaches beyond its storage",
    ),
    "backwards.pth": (lambda: torch_zip(tensors(1, (2,), (-1,), numbers=3), {"archive/data/0": bytes(12)}), DAMAGED),
    "short_storage.pth": (
        lambda: torch_zip(tensors(1, (2,), (1,), numbers=1 << 50), {"archive/data/0": bytes(8)}),
        "do not have the sizes",
    ),
    "zip_bomb.pth": (
        lambda: torch_zip(b"\x80\x02" + b"}" * 90_000_000 + b".", {}, zipfile.ZIP_DEFLATED),
        "its zip is compressed",
    ),
    "storage_bomb.pth": (
        lambda: torch_zip(
            tensors(1, (2,), (1,), numbers=20_000_000), {"archive/data/0": bytes(80_000_000)}, zipfile.ZIP_DEFLATED
        ),
        "its zip is compressed",
    ),
    "listing.pth": (lambda: listing(100_000), MUCH),
    "two_pickles.pth": (
        lambda: torch_zip(b"\x80\x02}.", {"../../data.pkl": b"\x80\x02}."}),
        "holds 2 files called data",
    ),
    "legacy_count.pth": (
        lambda: torch_legacy(
            tensors(1, (2,), (1,), numbers=1 << 60), b"\x80\x02]" + text("0") + b"a.", (1 << 60).to_bytes(8, "little")
        ),
        SHORT,
    ),
    "legacy_keys.pth": (
        lambda: torch_legacy(tensors(1, (2,), (1,), numbers=2), b"\x80\x02]" + DEEP + b"a.", bytes(16)),
        DAMAGED,
    ),
    "legacy_size.pth": (
        lambda: torch_legacy(tensors(1, (2,), (1,), numbers=2), b"\x80\x02]" + text("0") + b"a.", bytes(16)),
        "do not have the sizes",
    ),
    "tar.pth": (lambda: b"storages".ljust(100, b"\0") + b"0000644\0" * 3 + bytes(5000), DAMAGED),
    "bomb.tar.gz": (lambda: tar(("w.pdparams", 20_000_000)), UNPACKS),
    "bomb_beside.tar.gz": (lambda: tar(("a", 20_000_000), ("w.pdparams", PICKLED)), UNPACKS),
    "bomb_behind.tar.gz": (lambda: tar(("w.pdparams", PICKLED), ("a", 20_000_000)), UNPACKS),
    "bomb_at_the_end.tgz": (lambda: tar(("w.pdparams", PICKLED)) + gzip.compress(bytes(20_000_000)), UNPACKS),
    "name.tar.gz": (claimed_header, UNPACKS),
    "names.tar.gz": (lambda: gzip.compress(tarfile.TarInfo("a").tobuf() * 36_000), UNPACKS),
    "bomb.zip": (lambda: archived(("w.pdparams", bytes(20_000_000))), UNPACKS),
    "lzma.zip": (lambda: archived(("w.pdparams", PICKLED), compression=zipfile.ZIP_LZMA), DAMAGED),
    "lying.zip": (
        lambda: archived(("w.pdparams", bytes(15_000_000))).replace(struct.pack("<I", 15_000_000), b"\xff\0\0\0"),
        DAMAGED,
    ),
    "half.tar.gz": (lambda: tar(("w.pdparams", PICKLED))[:-9], DAMAGED),
    "half.tar": (lambda: tar(("w.pdparams", PICKLED * 99), mode="w")[:5000], DAMAGED),
    "flipped.tar.gz": (lambda: tar(("w.pdparams", PICKLED))[:-8] + bytes(4) + bytes([0, 40, 0, 0]), DAMAGED),
    "in_another.tar.gz": (lambda: tar(("w.pdparams", tar(("w.pdparams", PICKLED)))), DAMAGED),
    "in_another.zip": (lambda: archived(("w.pdparams", archived(("w.pdparams", PICKLED)))), "holds 0 files called"),
    "calls.tar.gz": (lambda: tar(("w.pdparams", b"cos\nsystem\n.")), "it asks for os.system, which no weights"),
    "length.safetensors": (lambda: b"\xff" * 8 + b"{}", SHORT),
    "deep.safetensors": (lambda: safetensors(b"[" * 500_000), DAMAGED),
    "lists.safetensors": (lambda: safetensors(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"), MUCH),
    "sides.safetensors": (lambda: safetensors({"a": of_one_type([3] * 100_000, 0, 4)}, bytes(4)), DAMAGED),
    "digits.safetensors": (lambda: safetensors(b'{"a":{"data_offsets":[0,' + b"9" * 1_000_000 + b"]}}"), DAMAGED),
    "overlapping.safetensors": (
        lambda: safetensors({str(i): of_one_type([10**6], 0, 10**6) for i in range(99)}, bytes(10**6)),
        DAMAGED,
    ),
    "holes.safetensors": (lambda: safetensors({"a": of_one_type([4], 4, 8)}, bytes(8)), DAMAGED),
    "more.safetensors": (lambda: safetensors({"a": of_one_type([4], 0, 4)}, bytes(8)), "do not have the sizes"),
    "less.safetensors": (lambda: safetensors({"a": of_one_type([4], 0, 4)}, bytes(3)), SHORT),
    "fp8.safetensors": (
        lambda: safetensors({"a": of_one_type([4], 0, 4, "F8_E4M3")}, bytes(4)),
        "it holds numbers of the kind F8_E4M3, which no weights are",
    ),
    "list.safetensors": (lambda: safetensors([1, 2]), DAMAGED),
    "empty.pdparams": (lambda: b"", SHORT),
    "text.pdparams": (lambda: b"<html>not found</html>", DAMAGED),
    "list.pdparams": (lambda: pickle.dumps([1, 2]), NONE),
    "numbers.pdparams": (lambda: pickle.dumps({"a": 1}), NONE),
    "objects_array.pdparams": (lambda: pickle.dumps({"a": np.array([{}])}), "an array of dtype 'O8'"),
    "parts.pdparams": (lambda: pickle.dumps({"a": np.zeros(2, "f4,i4")}), "an array of dtype 'V8'"),
    "texts_array.pdparams": (lambda: pickle.dumps({"a": np.array(["a"])}), "an array of dtype 'U1'"),
    "complex.pdparams": (lambda: pickle.dumps({"a": np.zeros(2, "c8")}), "an array of dtype 'c8'"),
    "swapped.pdparams": (lambda: pickle.dumps({"a": np.zeros(2, ">f4")}), "big-endian"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of all bombs, read one after the other in another process with little memory and time."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (make, _) in BOMBS.items():
        (folder / name).write_bytes(make())
    found = fuzz_weights.read_all(folder)
    assert set(found) == set(BOMBS)
    assert not fuzz_weights.wrong(found, folder)
    yield found
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_ask_for_too_much_are_refused_in_a_sentence(outcomes, name):
    expected = BOMBS[name][1]
    assert f"{name}: expected weights (.pdparams, .pth or .safetensors), but " in outcomes[name]
    assert expected in outcomes[name]
    assert outcomes[name].endswith("; get it again from a place you trust")


ARCHIVES = {
    "w.tar.gz": lambda *entries: tar(*entries),
    "w.tar": lambda *entries: tar(*entries, mode="w"),
    "w.zip": lambda *entries: archived(*entries),
    "stored.zip": lambda *entries: archived(*entries, compression=zipfile.ZIP_STORED),
}
BESIDE = [("hrnet/", b""), ("hrnet/._model.pdparams", b"of macOS"), ("../../escaped", b"a"), ("/escaped.txt", b"b")]


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_only_weight_file_of_an_archive(tmp_path, monkeypatch, name):
    folder = tmp_path / "folder/folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    write_weights(tmp_path / "w.safetensors", ARRAYS)
    for inside, content in {
        "hrnet/model.pdparams": PICKLED,
        "../../escaped.pdparams": PICKLED,
        "w.pth": torch_zip(tensors(1, (2,), (1,), numbers=2), {"archive/data/0": bytes(8)}),
        "w.safetensors": (tmp_path / "w.safetensors").read_bytes(),
    }.items():
        Path(name).write_bytes(ARCHIVES[name](*BESIDE, (inside, content)))
        assert_equal(read_weights(name), {"t0": np.zeros(2, np.float32)} if inside == "w.pth" else ARRAYS)
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", name, "w.safetensors"}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_without_weights_or_with_several(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ARCHIVES[name](*BESIDE))
    with pytest.raises(DataError) as caught:
        read_weights(path)
    assert "but it is an archive without a file of this kind (.pdparams, .pth, .pt, .safetensors); give another" in str(
        caught.value
    )
    path.write_bytes(ARCHIVES[name](("a/model.pdparams", PICKLED), *BESIDE, ("b/model.pth", PICKLED)))
    with pytest.raises(DataError) as caught:
        read_weights(path)
    several = "but it is an archive with several, a/model.pdparams and b/model.pth; unpack it and give the path of the"
    assert several in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_an_archive_are_no_weights(tmp_path, kind):
    (tmp_path / "w.tar").write_bytes(tar(("w.pdparams", b""), kind=kind, mode="w"))
    with pytest.raises(DataError, match="an archive without a file of this kind"):
        read_weights(tmp_path / "w.tar")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"model": ARRAYS, "optimizer": {"a": ZEROS}},
        {"state_dict": ARRAYS, "a": ZEROS, "ema": {"a": ZEROS}},
        {"epoch": 3, "model_state": {"module": ARRAYS}},
        {"net": {"name": "hrnet"}, "ema": {"state_dict": ARRAYS}},
        {"model_state_dict": ARRAYS},
    ],
)
def test_the_section_of_a_checkpoint_that_holds_the_weights(tmp_path, checkpoint):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(checkpoint, 4))
    assert_equal(read_weights(tmp_path / "w.pth"), ARRAYS)


def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path):
    whole, mutants = tmp_path / "whole", tmp_path / "mutants"
    whole.mkdir()
    mutants.mkdir()
    originals = fuzz_weights.write_originals(whole)
    found = fuzz_weights.read_all(whole)
    assert set(found.values()) == {fuzz_weights.ARRAYS}
    assert {path.suffix for path in originals} == {".pdparams", ".pdopt", ".pth", ".safetensors", ".gz", ".tar", ".zip"}
    fuzz_weights.write_mutants(mutants, originals, count=2000, seed=0)
    found = fuzz_weights.read_all(mutants)
    assert len(found) == 2000
    assert not fuzz_weights.wrong(found, mutants)
    assert 100 < list(found.values()).count(fuzz_weights.ARRAYS) < 1000
    shutil.rmtree(mutants)


def test_the_limits_of_the_fuzzing_hold(tmp_path, monkeypatch):
    """A reader that takes too much, hangs or dies is found out."""
    reader = tmp_path / "reader.py"
    source = Path(fuzz_weights.__file__).read_text(encoding="utf-8")
    monkeypatch.setattr(fuzz_weights, "__file__", str(reader))
    (tmp_path / "files").mkdir()
    for name in ("dies", "hangs", "takes", "whole"):
        (tmp_path / "files" / name).write_bytes(pickle.dumps(ARRAYS))
    acts = "{'dies': lambda: os.abort(), 'hangs': lambda: max(iter(int, 1)), 'takes': lambda: bytes(90 << 20)}"
    reader.write_text(
        source.replace("MAX_SECONDS = 20", "MAX_SECONDS = 1")
        .replace("parents[2]", f"parents[0]; ROOT = Path({str(fuzz_weights.ROOT)!r}); import os")
        .replace(
            "            (read_pickle if", f"            {acts}.get(path.name, int)()\n            (read_pickle if"
        )
    )
    found = fuzz_weights.read_all(tmp_path / "files")
    assert set(fuzz_weights.wrong(found, tmp_path / "files")) == {"dies", "hangs", "takes"}
    assert "status -6" in found["dies"] and "status -14" in found["hangs"] and "MemoryError" in found["takes"]


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere\.pdparams: expected weights .*, but there is no such file; check the"
    ):
        read_weights(tmp_path / "nowhere.pdparams")
    os.mkfifo(tmp_path / "pipe.pdparams")
    with pytest.raises(DataError, match=r"pipe\.pdparams.*no such file"):
        read_weights(tmp_path / "pipe.pdparams")
    with pytest.raises(DataError, match="cannot be opened"):
        read_weights(tmp_path / ("a" * 300))
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        sha256(tmp_path / "nowhere")


def test_names_inside_a_zip_are_never_written_to(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pickled = tensors(1, (2,), (1,), numbers=2, key=text("../../../escaped"))
    (folder / "w.pth").write_bytes(torch_zip(pickled, {"archive/data/../../../escaped": ARRAYS["a"].tobytes()[:8]}))
    assert_equal(read_weights(folder / "w.pth"), {"t0": ARRAYS["a"].reshape(-1)[:2]})
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "w.pth"]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf8f01cfea")
