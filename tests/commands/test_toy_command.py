# SPDX-License-Identifier: Apache-2.0
"""`hmsa toy`: a street world that can be trained on at once, and shapes in the forms that people have masks in."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hmsa.commands import toy
from hmsa.datasets.cityscapes import CityscapesAutolabeling
from hmsa.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(line: str) -> None:
    toy.main(toy.make_parser().parse_args(shlex.split(line)))


def test_the_street_world_has_its_train_ids(capsys: pytest.CaptureFixture[str]) -> None:
    draw("--size 128 64 --train 1 --coarse 1 --val 1 --test 0 --output 'a b'")
    (said,) = capsys.readouterr().out.splitlines()
    images, command = said.split(" Next: ")
    assert images == "a b: 1 train, 1 coarse, 1 val and 0 test images."
    assert "train_dataset.dataset_root='a b'" in command
    common = {"dataset_root": "a b", "transforms": [], "seed": 0}
    assert len(CityscapesAutolabeling(mode="train", **common)) == 2
    assert len(CityscapesAutolabeling(mode="val", **common)) == 1


def test_a_world_of_one_kind_of_labels_or_none(folder: Path) -> None:
    draw("--size 128 64 --train 0 --coarse 1 --val 0 --test 0 --output coarse")
    draw("--size 128 64 --train 0 --coarse 0 --val 1 --test 0 --output fine")
    draw("--size 128 64 --train 1 --coarse 0 --val 0 --test 0 --output ids --label_ids")
    assert len(list(folder.glob("coarse/convert_autolabelled/*/*.png"))) == 1
    assert len(list(folder.glob("fine/gtFine/*/*/*TrainIds.png"))) == 1
    assert list(folder.glob("ids/gtFine/*/*/*TrainIds.png")) == []


@pytest.mark.parametrize(
    ("masks", "there", "following"),
    [
        ("values", "masks/shapes_000.png", "hmsa init --images data/toy_shapes/images --masks data/toy_shapes/masks"),
        ("binary", "masks/shapes_000.png", "hmsa init "),
        ("colors", "masks/shapes_000.png", "hmsa init "),
        ("labelme", "images/shapes_000.json", "hmsa convert labelme --annotations data/toy_shapes/images "),
    ],
)
def test_shapes(masks: str, there: str, following: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(f"--kind shapes --count 1 --masks {masks}")
    assert (folder / "data/toy_shapes" / there).is_file()
    assert f"data/toy_shapes: 1 images. Next: {following}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--kind shapes --coarse 3", "expected --coarse together with --kind cityscapes"),
        ("--kind shapes --label_ids", "expected --label_ids together with --kind cityscapes"),
        ("--count 3", "expected --count together with --kind shapes"),
        ("--masks binary", "expected --masks together with --kind shapes"),
    ],
)
def test_flags_of_the_other_kind_are_refused(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        draw(line)
