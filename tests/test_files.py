# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.errors import DataError
from hmsa.files import writable_folder, write_atomically


def test_write_makes_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b" / "result.json"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    write_atomically(target, b"old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"result\.json: cannot be written \(No space left on device\)"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x", b"")
    with pytest.raises(DataError, match="cannot write to this folder"):
        writable_folder(tmp_path / "file" / "x")
    with pytest.raises(DataError, match="cannot write to this folder"):
        writable_folder(tmp_path / "file")


def test_writable_folder_is_made_and_left_empty(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())
