# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.errors import DataError, UsageError
from hmsa.system.files import check_whole, output_file, writable_folder, write_atomically


def test_write_makes_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b" / "result.json"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.json"
    write_atomically(target, b"old")

    def full(file):
        file.write(b"n")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"result\.json: cannot be written \(No space left on device\)"):
        write_atomically(target, full)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_was_cut_short(tmp_path):
    """By a limit of its size, as by a full disk; one that was not is left as it was."""
    path = tmp_path / "whole"
    path.write_bytes(b"whole")
    check_whole(path)
    assert path.read_bytes() == b"whole"

    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5)); from pathlib import Path"
    check = f"from hmsa.system.files import check_whole; check_whole(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", f"{limit}; {check}"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"
    assert path.read_bytes() == b"whole"


def test_what_was_there_is_kept_under_the_next_number(tmp_path):
    target = tmp_path / "result.json"
    (tmp_path / "result.2.json").write_bytes(b"of somebody")
    (tmp_path / "elsewhere.json").write_bytes(b"elsewhere")
    kept = [write_atomically(target, content, keep_earlier=True) for content in (b"a", b"b", b"c")]
    assert kept == [None, tmp_path / "result.1.json", tmp_path / "result.3.json"]
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere.json")
    assert write_atomically(target, b"d", keep_earlier=True) == tmp_path / "result.4.json"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "result.json": b"d",
        "result.1.json": b"a",
        "result.2.json": b"of somebody",
        "result.3.json": b"b",
        "result.4.json": b"elsewhere",
        "elsewhere.json": b"elsewhere",
    }


def test_a_name_for_a_result_is_checked_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "folder/", "new_folder/", ".", "..", ""):
        with pytest.raises(UsageError, match="expected a file to write, found a folder"):
            output_file(name)
    for name in ("pipe", "/dev/null"):
        with pytest.raises(UsageError, match="expected a file to write, found a device or a pipe"):
            output_file(name)
    with pytest.raises(UsageError, match="expected a file to write, but: File name too long"):
        output_file("x" * 300)
    with pytest.raises(UsageError, match="expected a file to write, but: File name too long"):
        output_file("x" * 250)  # too long for the file that is written beside it first
    with pytest.raises(DataError, match="expected a folder to write to, found a file"):
        output_file("file/x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]
    assert output_file("file") == Path("file")
    assert output_file("a/b/no_suffix") == Path("a/b/no_suffix")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x", b"")
    with pytest.raises(DataError, match="cannot write to this folder"):
        writable_folder(tmp_path / "file" / "x")
    with pytest.raises(DataError, match="expected a folder to write to, found a file"):
        writable_folder(tmp_path / "file")


def test_writable_folder_is_made_and_left_empty(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())
