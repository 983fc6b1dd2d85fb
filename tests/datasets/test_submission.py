# SPDX-License-Identifier: Apache-2.0
"""The archive for Cityscapes' test server, in small."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.commands import submission as command
from hmsa.datasets import submission
from hmsa.errors import DataError

NAMES = ["berlin/berlin_000000_000019", "bonn/bonn_000003_000019"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Images of a test split of two, and predictions of both."""
    monkeypatch.setattr(submission, "COUNT", 2)
    monkeypatch.setattr(submission, "SIZE", (16, 8))
    for name in NAMES:
        for path in (tmp_path / f"root/leftImg8bit/test/{name}_leftImg8bit.png", tmp_path / f"found/{name}_pred.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 16), 26, np.uint8)).save(path)
    return tmp_path


def run(place: Path) -> Path:
    given = ["--predictions", place / "found", "--dataset_root", place / "root", "--output", place / "out/made.zip"]
    command.main(command.make_parser().parse_args(list(map(str, given))))
    return place / "out/made.zip"


def replace_first(place: Path, pixels: np.ndarray, mode: str = "L") -> None:
    image = Image.fromarray(pixels.astype(np.uint8), mode)
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    image.save(place / f"found/{NAMES[0]}_pred.png")


def test_an_archive(place, capsys):
    replace_first(place, np.tile(np.arange(16), (8, 1)), "P")
    archive = zipfile.ZipFile(run(place))
    assert archive.namelist() == [f"{Path(name).name}_gtFine_labelIds.png" for name in NAMES]
    first, second = (Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist())
    assert first.mode == second.mode == "L"
    assert np.asarray(first)[0].tolist() == [*range(16)] and (np.asarray(second) == 26).all()
    assert "2 predictions, 0 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((8, 15)), "expected predictions of 16x8 that hold label ids, 0 to 33, found 1 others: .* is 15x8"),
        (np.full((8, 16), 255), r"_pred\.png holds 255; make them anew, without resizing and as label ids"),
        (np.full((8, 16), 34), "holds 34"),
    ],
)
def test_wrong_predictions_are_refused(place, pixels, said):
    replace_first(place, pixels)
    with pytest.raises(DataError, match=said):
        run(place)
    assert list((place / "out").iterdir()) == []


def test_train_ids_are_refused(place):
    for name in NAMES:
        Image.fromarray(np.full((8, 16), 18, np.uint8)).save(place / f"found/{name}_pred.png")
    with pytest.raises(DataError, match="found no value above 18 in 2 predictions, which are rather train ids"):
        run(place)


def test_an_incomplete_archive_is_refused(place, monkeypatch):
    (place / f"found/{NAMES[1]}_pred.png").unlink()
    with pytest.raises(
        DataError, match=r"expected one PNG for each of 2 images.*bonn/bonn_000003_000019_leftImg8bit\.png"
    ):
        run(place)
    monkeypatch.setattr(submission, "COUNT", 1525)
    with pytest.raises(DataError, match="expected the 1525 images of Cityscapes' test split, found 2"):
        run(place)
