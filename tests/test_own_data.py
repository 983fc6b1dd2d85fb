# SPDX-License-Identifier: Apache-2.0
"""docs/own-data.md as it stands: from files to predictions, and its links and flags."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.commands import parser_of
from hmsa.config.schema import Config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/own-data.md"


def commands(heading: str = "# Your own images") -> list[str]:
    """Those below a heading, in order."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(heading)
    return "".join(re.findall(r"```shell\n(.*?)```", text, re.DOTALL)).splitlines()


@pytest.mark.slow
def test_the_page_leads_from_files_to_predictions(tmp_path: Path) -> None:
    draw, *steps = commands()[: -len(commands("### Starting from weights"))]
    assert len(steps) <= 6
    for command in (draw, *steps):
        words = [sys.executable, "-m", *shlex.split(command)]
        run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"

    # Below what the page's table has, as each kind of processor rounds differently.
    assert json.loads((tmp_path / "output/evaluation.json").read_text())["mean_iou"] > 0.85
    for folder in ("added_prediction", "pseudo_color_prediction", "sheets"):
        assert len(list((tmp_path / "output/result" / folder).rglob("*.*"))) == 40
    assert (tmp_path / "output/check/samples.png").is_file()


@pytest.mark.slow
def test_polygons_of_labelme_lead_there_too(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks/own_data.py"), "--only", "labelme", "--iters", "150"]
    run = subprocess.run([*script, "--output", str(tmp_path)], capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    (row,) = [line for line in run.stdout.splitlines() if line.startswith("| polygons drawn in Labelme")]
    # After a part of the iterations; one answer everywhere would be below 20.
    assert float(row.split("|")[-2].removesuffix("% ")) > 40
    assert len(list((tmp_path / "labelme/predicted/added_prediction").glob("*.jpg"))) == 40


def test_every_flag_and_key_of_the_page_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for words in map(shlex.split, [*commands(), *re.findall(r"`(hmsa [a-z-]+ --[^`]*)`", text)]):
        flags = {flag for action in parser_of(words[1])._actions for flag in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= flags
    for key in re.findall(r"`(\w+): ", text):
        assert key in Config.model_fields or key in ("values", "ema"), key


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / link).exists(), link
