# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import zipfile

import pytest

from hmsa.datasets.drawn import archives
from hmsa.errors import DataError


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        camvid = [f"top/CamVid/{name}" for name in ("train/a ä.png", "train.txt", "run.py")]
        for name in (*camvid, "top/Other/b.png", "c_L.png"):
            file.writestr(name, name * 20)
        for name in ("../out.png", "/etc/out.png", "top/CamVid/.hidden.png"):
            file.writestr(name, "no")
    return path


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_and_texts_are_unpacked_and_nothing_gets_out(archive, tmp_path):
    assert archives.unpack(archive, tmp_path / "in") == 4
    assert names(tmp_path / "in") == ["c_L.png", "top/CamVid/train.txt", "top/CamVid/train/a ä.png", "top/Other/b.png"]
    assert (tmp_path / "in/c_L.png").read_text() == "c_L.png" * 20
    assert not (tmp_path / "out.png").exists()


def test_a_part_of_an_archive(archive, tmp_path):
    assert archives.unpack(archive, tmp_path / "in", below="CamVid") == 2
    assert names(tmp_path / "in") == ["CamVid/train.txt", "CamVid/train/a ä.png"]


def test_what_is_there_is_kept(archive, tmp_path):
    archives.unpack(archive, tmp_path / "in")
    before = (tmp_path / "in/c_L.png").stat().st_mtime_ns
    (tmp_path / "in/top/Other/b.png").write_text("cut off")
    archives.unpack(archive, tmp_path / "in")
    assert (tmp_path / "in/c_L.png").stat().st_mtime_ns == before
    assert (tmp_path / "in/top/Other/b.png").read_text() == "top/Other/b.png" * 20


def test_an_archive_of_too_much(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="at most 100 bytes"):
        archives.unpack(archive, tmp_path / "in")


def test_archives_that_are_none(archive, tmp_path):
    archives.check(archive, "http://there/a.zip")
    data = archive.read_bytes()
    (tmp_path / "page.zip").write_text("<html>")
    (tmp_path / "cut.zip").write_bytes(data[:200])
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo("c_L.png").header_offset
    (tmp_path / "damaged.zip").write_bytes(data[: start + 38] + b"?" + data[start + 39 :])
    for name in ("page", "cut", "damaged"):
        with pytest.raises(DataError, match=r"^http://there/a\.zip should be a "):
            archives.check(tmp_path / f"{name}.zip", "http://there/a.zip")
