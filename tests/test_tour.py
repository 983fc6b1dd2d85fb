# SPDX-License-Identifier: Apache-2.0
"""docs/tour.md, docs/gallery.md and what docs/training.md shows: their commands run after a very short demo."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from test_readme import EXTRA, SMALL

from hmsa.commands import parser_of

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("tour.md", "gallery.md", "training.md")}


def commands(page: str) -> list[str]:
    """The calls of `hmsa`, `python` and curl, in order; of docs/training.md, those of one section."""
    text = PAGES[page]
    if page == "training.md":
        text = text.partition("\n## What training sees")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"```shell\n(.*?)```", text, re.DOTALL)).splitlines()
    return [line for line in lines if line.startswith(("hmsa ", "python ", "curl "))]


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def words_of(command: str) -> list[str]:
    """What Python is given for a command; those with a recipe take a small network."""
    name, *words = shlex.split(command)
    if name == "python":
        return [sys.executable, str(ROOT / words[0]), *words[1:]]
    small = EXTRA.get(words[0], ["--opts", *SMALL]) if "--config" in words else []
    return [sys.executable, "-m", "hmsa", *words, *small]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, toy_root: Path, tiny_recipe: Path) -> Path:
    """A folder with what `make demo` leaves, after two iterations."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "data").mkdir()
    (folder / "data/toy_cityscapes").symlink_to(toy_root)
    flags = ["--save_dir", "output/demo/model", "--iters", "2", "--do_eval", "--use_vdl", "--log_iters", "1"]
    run([sys.executable, "-m", "hmsa", "train", "--config", str(tiny_recipe), *flags], folder)
    return folder


@pytest.mark.slow
def test_the_tour_can_be_taken(workplace: Path) -> None:
    if not (shutil.which("curl") and find_spec("uvicorn") and find_spec("onnxruntime")):
        pytest.skip('the tour needs curl and pip install ".[onnx,serve]"')
    *steps, serve, curl = commands("tour.md")
    said = {step: run(words_of(step), workplace) for step in steps}
    (official,) = [said[step] for step in steps if "--official" in step]
    assert official.splitlines()[-1].endswith("to the last digit")
    sheets = list((workplace / "output/seen/sheets").rglob("*.png"))
    assert len(sheets) == 1
    for name in ("curves.png", "batch.png", "transforms.png"):
        assert Image.open(workplace / "output" / name).size > (500, 300)

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [*words_of(serve), "--port", "0"], cwd=workplace, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        run(shlex.split(curl.replace("http://127.0.0.1:8000", address)), workplace)
    finally:
        server.terminate()
        server.wait(60)
    assert Image.open(workplace / "overlay.png").size == (128, 64)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["gallery.md", "training.md"])
def test_the_pictures_can_be_made(workplace: Path, page: str) -> None:
    for command in commands(page):
        run(words_of(command), workplace)


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_exists(page: str) -> None:
    found = commands(page)
    assert len(found) >= 2
    for words in map(shlex.split, found):
        if words[0] == "hmsa":
            flags = {flag for action in parser_of(words[1])._actions for flag in action.option_strings}
            assert {word for word in words if word.startswith("--")} <= flags
    if page == "training.md":
        section = PAGES[page].partition("\n## What training sees")[2].partition("\n## ")[0]
        flags = {flag for action in parser_of("inspect-batch")._actions for flag in action.option_strings}
        assert set(re.findall(r"--[a-z_]+", section)) <= flags


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_pictures_are_small(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        path = ROOT / "docs" / link
        assert path.exists(), link
        assert path.suffix not in (".jpg", ".png") or path.stat().st_size < 230_000, link
