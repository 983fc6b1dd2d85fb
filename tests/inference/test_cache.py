# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hmsa.errors import DataError
from hmsa.inference import cache
from hmsa.system import files


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Writer:
    """Writes two files and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "program").write_text("program")
        (folder / "weights").write_bytes(bytes(1000))


def test_what_is_written_once_is_found_again(folder):
    writer = Writer()
    made = cache.entry({"a": 1, "b": [2, 3]}, writer)
    assert made.parent == folder
    assert (made / "program").read_text() == "program"
    assert cache.entry({"b": [2, 3], "a": 1}, writer) == made
    assert writer.calls == 1
    assert list(folder.iterdir()) == [made]


def damage(made):
    (made / "weights").write_bytes(bytes(999) + b"\1")


def lose(made):
    (made / "weights").unlink()


def break_index(text):
    return lambda made: (made / "entry.json").write_text(text)


BROKEN = {
    "damaged": damage,
    "missing": lose,
    "no index": lambda made: (made / "entry.json").unlink(),
    **{f"index {text!r}": break_index(text) for text in ("", "{", "{}", "[]", "[1]", "3", '{"nowhere": "0"}')},
    "deep index": break_index('{"a":' * 100_000),
    "endless file": break_index('{"/dev/zero": "0"}'),
    "file elsewhere": break_index('{"../cache": "0"}'),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_an_entry_that_is_not_whole_is_made_anew(folder, spoil):
    writer = Writer()
    made = cache.entry("x", writer)
    spoil(made)
    assert cache.entry("x", writer) == made
    assert writer.calls == 2
    assert (made / "weights").read_bytes() == bytes(1000)
    assert cache.entry("x", writer) == made
    assert writer.calls == 2
    assert list(folder.iterdir()) == [made]


def test_a_writer_that_fails_leaves_nothing(folder):
    def write(made):
        (made / "program").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("x", write)
    assert list(folder.iterdir()) == []


def test_an_interrupted_writer_leaves_nothing(folder):
    def write(made):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("x", write)
    assert list(folder.iterdir()) == []


def test_what_another_process_wrote_meanwhile_is_kept(folder):
    def write(made):
        Writer()(made)
        quicker = cache.entry("x", Writer())
        os.utime(quicker / "program", (1000, 1000))

    assert (cache.entry("x", write) / "program").stat().st_mtime == 1000
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, [1]])
def test_other_data_are_another_entry(other):
    writer = Writer()
    assert cache.entry({"a": 1}, writer) != cache.entry(other, writer)
    assert writer.calls == 2


def test_the_entry_not_used_for_longest_goes_first(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_KEPT", 3)
    made = {}
    for age, name in enumerate("abc"):
        made[name] = cache.entry(name, Writer())
        os.utime(made[name], (1000 + age, 1000 + age))
    cache.entry("a", Writer())  # used again
    (folder / "notes").mkdir()
    made["d"] = cache.entry("d", Writer())
    assert set(folder.iterdir()) == {made["a"], made["c"], made["d"], folder / "notes"}


def names_of_32_digits(folder):
    """A user's own folders, as old as can be, whose names look like ours: three of them hold an entry.json."""
    for number, index in enumerate([None, "{}", '{"a": "b"}', '{"../notes": "' + "0" * 64 + '"}']):
        own = folder / f"{number:032x}"
        own.mkdir(parents=True)
        (own / "thesis.tex").write_text("years of work")
        if index is not None:
            (own / "entry.json").write_text(index)
        os.utime(own, (1, 1))
        yield own


def test_folders_that_only_look_like_entries_stay(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_KEPT", 1)
    theirs = list(names_of_32_digits(folder))
    unfinished = folder / f".{5:032x}-draft"
    unfinished.mkdir()
    os.utime(unfinished, (1, 1))
    cache.entry("a", Writer())
    made = cache.entry("b", Writer())
    assert set(folder.iterdir()) == {*theirs, unfinished, made}
    assert all((path / "thesis.tex").is_file() for path in theirs)


@pytest.mark.parametrize("old", [True, False])
def test_what_somebody_put_into_an_entry_stays(folder, monkeypatch, old):
    """Where the entry is deleted because of its age, and where it is damaged and made anew."""
    monkeypatch.setattr(cache, "MAX_KEPT", 1)
    made = cache.entry("a", Writer())
    (made / "notes.md").write_text("mine")
    if not old:
        damage(made)
        made = cache.entry("a", Writer())
    os.utime(made, (1, 1))
    cache.entry("b", Writer())
    (notes,) = folder.rglob("notes.md")
    assert notes.read_text() == "mine"
    assert [path.name for path in notes.parent.iterdir()] == ["notes.md"]


def test_the_index_names_every_file():
    made = cache.entry("x", Writer())
    assert set(json.loads((made / "entry.json").read_text())) == {"program", "weights"}


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "mine" / "deep"))
    assert files.cache_folder() == tmp_path / "mine" / "deep"
    assert cache.entry("x", Writer()).parent == tmp_path / "mine" / "deep"
    monkeypatch.delenv("HMSA_CACHE")
    assert files.cache_folder() == tmp_path / "xdg" / "hmsa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "hmsa"


def no_home(monkeypatch, folder):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HMSA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def file_in_the_way(monkeypatch, folder):
    folder.write_bytes(b"")


def read_only(monkeypatch, folder):
    def refuse(dir, prefix):
        raise OSError(30, "Read-only file system", dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)


CANNOT_BE_USED = {
    no_home: "there is no home folder",
    file_in_the_way: "File exists",
    read_only: "Read-only file system",
}


@pytest.mark.parametrize("spoil", CANNOT_BE_USED)
def test_a_cache_that_cannot_be_used_is_said(monkeypatch, folder, spoil):
    spoil(monkeypatch, folder)
    with pytest.raises(DataError, match=r"expected room for inference programs, but: .*set HMSA_CACHE") as error:
        cache.entry("x", Writer())
    assert CANNOT_BE_USED[spoil] in str(error.value)
    assert error.value.settings == ["backend"]


def test_a_full_disk_under_the_cache(folder):
    def write(made):
        (made / "program").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"expected room for inference programs, but: .*No space left.*set HMSA_CACHE"):
        cache.entry("x", write)
    assert list(folder.iterdir()) == []


def test_a_cache_that_can_only_be_read_is_used(monkeypatch, folder, capsys):
    made = cache.entry("x", Writer())

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    assert cache.entry("x", Writer()) == made
    assert capsys.readouterr().err == ""


def test_an_entry_that_another_process_deletes_meanwhile(monkeypatch, folder):
    """Between listing the cache and looking at its entries."""
    cache.entry("x", Writer())
    (folder / ("0" * 32)).symlink_to(folder / "gone")
    made = cache.entry("y", Writer())
    assert (made / "program").is_file()


WORKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from hmsa.inference import cache

def write(folder):
    (folder / "program").write_bytes(bytes(100_000))
    print("writing", flush=True)
    time.sleep({seconds})
    (folder / "weights").write_bytes(bytes(100_000))

print(cache.entry("x", write), flush=True)
"""


def start_worker(seconds):
    code = WORKER.format(root=str(Path(cache.__file__).parents[2]), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("there_before", ["nothing", "a damaged entry"])
def test_several_processes_at_once(folder, there_before):
    if there_before == "a damaged entry":
        damage(cache.entry("x", Writer()))
    workers = [start_worker(seconds=0.3) for _ in range(6)]
    outputs = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 6, outputs
    (made,) = folder.iterdir()
    assert {output.splitlines()[-1] for output, _ in outputs} == {str(made)}
    assert {path.name for path in made.iterdir()} == {"program", "weights", "entry.json"}
    assert cache.entry("x", Writer()) == made
    assert (made / "weights").stat().st_size == 100_000


def test_what_a_killed_writer_left_is_deleted_after_a_day(folder):
    worker = start_worker(seconds=60)
    assert worker.stdout.readline() == "writing\n"
    worker.kill()
    worker.communicate(timeout=10)
    (left,) = folder.iterdir()
    (folder / ".another").mkdir()
    made = cache.entry("x", Writer())
    assert set(folder.iterdir()) == {left, made, folder / ".another"}  # somebody might still be writing it
    os.utime(left, (time.time() - 90_000,) * 2)
    os.utime(folder / ".another", (1000, 1000))
    assert cache.entry("x", Writer()) == made
    assert set(folder.iterdir()) == {made, folder / ".another"}
