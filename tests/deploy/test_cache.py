# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os

import pytest

from hmsa.deploy import cache
from hmsa.errors import DataError


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


@pytest.mark.parametrize(("error", "seen"), [(ValueError("no"), ValueError), (OSError("disk full"), DataError)])
def test_a_writer_that_fails_leaves_nothing(folder, error, seen):
    def write(made):
        (made / "program").write_text("half")
        raise error

    with pytest.raises(seen):
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
    monkeypatch.setattr(cache, "MOST_KEPT", 3)
    made = {}
    for age, name in enumerate("abc"):
        made[name] = cache.entry(name, Writer())
        os.utime(made[name], (1000 + age, 1000 + age))
    cache.entry("a", Writer())  # used again
    (folder / "notes").mkdir()
    made["d"] = cache.entry("d", Writer())
    assert set(folder.iterdir()) == {made["a"], made["c"], made["d"], folder / "notes"}


def test_the_index_names_every_file():
    made = cache.entry("x", Writer())
    assert set(json.loads((made / "entry.json").read_text())) == {"program", "weights"}


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "mine" / "deep"))
    assert cache.cache_folder() == tmp_path / "mine" / "deep"
    assert cache.cache_folder().is_dir()
    monkeypatch.delenv("HMSA_CACHE")
    assert cache.cache_folder() == tmp_path / "xdg" / "hmsa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "hmsa"


def test_without_a_writable_folder_the_cache_is_temporary(monkeypatch, capsys, folder):
    def refuse(path):
        raise DataError(f"{path}: cannot write to this folder")

    registered = []
    monkeypatch.setattr(cache, "writable_folder", refuse)
    monkeypatch.setattr(cache.atexit, "register", lambda remove, *args, **options: registered.append((remove, args)))
    made = cache.entry("x", Writer())
    assert capsys.readouterr().err == (
        f"warning: {folder}: cannot write to this folder; inference programs are not kept this time\n"
    )
    assert (made / "program").is_file()
    assert not folder.exists()
    ((remove, args),) = registered
    remove(*args)
    assert not made.parent.exists()
