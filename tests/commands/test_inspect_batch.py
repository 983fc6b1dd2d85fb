# SPDX-License-Identifier: Apache-2.0
"""What training sees, drawn: the crops are those of the loader, whichever iteration they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa import builder
from hmsa.commands import inspect_batch
from hmsa.config.reading import load_config
from hmsa.datasets.loader import batches, training_indices
from hmsa.errors import UsageError
from hmsa.report import batch

BATCH = 2


def inspect(recipe, output, *flags):
    arguments = ["--config", str(recipe), "--output", str(output), *map(str, flags)]
    inspect_batch.main(inspect_batch.make_parser().parse_args(arguments))


@pytest.fixture(scope="module")
def dataset(tiny_recipe):
    return builder.build_dataset(load_config(tiny_recipe), "train")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_crops_are_those_of_an_iteration_of_a_run(dataset, processes):
    """Also of one on several processes, whose samples follow each other rank after rank."""
    part = inspect_batch.Part(first=5, images=BATCH * processes, epoch_length=len(dataset))
    seen = list(inspect_batch.samples(dataset, part, 2 * part.images))

    loaded = []
    for rank in range(processes):
        indices = training_indices(first_iteration=5, iterations=7, batch_size=BATCH, rank=rank, world_size=processes)
        loaded.append(list(batches(dataset, indices, num_workers=2)))
    expected = [
        (of_rank[iteration]["image_path"][place], of_rank[iteration]["img"][place], of_rank[iteration]["label"][place])
        for iteration in range(2)
        for of_rank in loaded
        for place in range(BATCH)
    ]
    assert len(seen) == len(expected) == 4 * processes
    for found, (path, image, label) in zip(seen, expected):
        assert found["image_path"] == [path]
        np.testing.assert_array_equal(found["img"][0], image)
        np.testing.assert_array_equal(found["label"][0], label)


@pytest.mark.parametrize(
    ("flags", "first", "sample"),
    [((), 0, 0), (("--iteration", 3), 3, 6), (("--epoch", 1), 6, 12), (("--epoch", 1, "--processes", 5), 2, 20)],
)
def test_an_iteration_by_its_epoch(tiny_recipe, dataset, flags, first, sample):
    """12 samples an epoch: with 10 an iteration, the first one that begins in the second epoch is number 2."""
    arguments = ["--config", str(tiny_recipe), "--output", "x.png", *map(str, flags)]
    args = inspect_batch.make_parser().parse_args(arguments)
    part = inspect_batch.Part.of(args, inspect_batch.read(args), len(dataset))
    assert len(dataset) == 12
    assert (part.first, part.sample) == (first, sample)


def test_a_sheet(tiny_recipe, tmp_path, capsys):
    inspect(tiny_recipe, tmp_path / "new/sheet.png", "--count", 5, "--iteration", 1, "--seed", 7)
    output = tmp_path / "new/sheet.png"
    assert capsys.readouterr().out == (f"5 crops, iterations 1 to 3, from epoch 0.17 on, seed 7; written to {output}\n")
    first = output.read_bytes()
    inspect(tiny_recipe, output, "--count", 5, "--iteration", 1, "--seed", 7)
    assert capsys.readouterr().out.endswith(f"written to {output}, in place of an earlier file\n")
    assert output.read_bytes() == first

    inspect(tiny_recipe, tmp_path / "other.jpg", "--count", 5, "--iteration", 1, "--seed", 8)
    other, sheet = (np.asarray(Image.open(path).convert("RGB")) for path in (tmp_path / "other.jpg", output))
    assert sheet.shape[1] == other.shape[1] and 600 < sheet.shape[1] < 1400
    assert other.shape != sheet.shape or np.abs(other.astype(int) - sheet).mean() > 2


def test_what_is_said_of_each_crop(tiny_recipe, dataset, tmp_path, monkeypatch):
    """Files of both kinds are in an epoch, and are told apart."""
    pages = []
    page = batch.draw_page
    monkeypatch.setattr(batch, "draw_page", lambda *given, **options: pages.append(given) or page(*given, **options))
    inspect(tiny_recipe, tmp_path / "sheet.png", "--count", len(dataset))
    ((title, cells, (names, _)),) = pages
    assert title.endswith(f"{len(dataset)} crops, iterations 0 to 5, from epoch 0.00 on, seed 42")
    for cell, (path, label) in zip(cells, dataset.epoch(0)):
        assert cell.name == Path(path).name
        assert cell.lines[0].endswith("coarse, auto-labelled" if "autolabelled" in label else "fine")
    shares = [(dataset[number]["label"] == 255).mean() for number in range(len(dataset))]
    assert [cell.lines[0].partition(" ignored")[0] for cell in cells] == list(map(batch.percent, shares))

    present = set(np.unique([dataset[number]["label"] for number in range(len(dataset))])) - {255}
    assert names == [*(dataset.classes.names[number] for number in sorted(present)), "ignored (striped)"]


def test_an_image_after_each_transform(tiny_recipe, dataset, tmp_path, monkeypatch, capsys):
    found = []
    stages = batch.stages
    monkeypatch.setattr(batch, "stages", lambda *given: found.extend(stages(*given)) or found)
    name = Path(dataset.epoch(0)[4][0]).name
    inspect(tiny_recipe, tmp_path / "a.png", "--transforms", "--image", name)
    said = capsys.readouterr().out
    assert said.startswith(f"{dataset.epoch(0)[4][0]}, sample 4 of epoch 0, seed 42; written to")

    transforms = ["ResizeStepScaling", "RandomPaddingCrop", "RandomHorizontalFlip", "RandomDistort", "Normalize"]
    assert [stage.name for stage in found] == ["as it is read", *transforms]
    assert found[0].drawn == "128x64"
    # The last is what training takes, whose scaling and crop are one.
    sample = dataset[4]
    np.testing.assert_array_equal(found[-1].label, sample["label"])
    shown = batch.denormalised(sample["img"].transpose(1, 2, 0), dataset.transforms, np.dtype(np.uint8))
    np.testing.assert_array_equal(found[-1].image, shown)
    np.testing.assert_array_equal(found[-1].image, found[-2].image)

    scaled, cropped, flipped, distorted, _ = (stage.drawn for stage in found[1:])
    factor = float(scaled.partition(";")[0].removeprefix("factor "))
    height, width = found[1].label.shape
    assert abs(width - 128 * factor) <= 1 and f"128x64 to {width}x{height}" in scaled
    assert "from row " in cropped and f"{width}x{height} to 96x64" in cropped
    mirrored = np.array_equal(found[3].label, found[2].label[:, ::-1])
    assert flipped.startswith("mirrored" if mirrored else "not mirrored")
    assert "brightness " in distorted and "hue " in distorted  # whose probability is 1


def test_an_image_that_comes_later(dataset):
    path = dataset.epoch(0)[3][0]
    assert inspect_batch.find(dataset, path, 0) == 3
    later = inspect_batch.find(dataset, path, 4)
    assert 12 <= later < 36 and dataset.epoch(later // 12)[later % 12][0] == path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--transforms", "--count", 3), "expected --count or --transforms"),
        (("--image", "x.png"), "expected --image together with --transforms"),
        (("--transforms", "--image", "x.png"), "12 images to train on, found x.png, which is none of them: check"),
        (("--count", 401), "expected --count of at most 400, found 401"),
        (("--opacity", 2), "expected --opacity from 0 to 1, found 2"),
        (("--output", "a.gif"), "a.gif: expected a name that ends in .jpg or .png"),
        (("--seed", -1), "--seed: expected seed to be greater"),
        (("--opts", "train_dataset=null"), "expected the section train_dataset"),
    ],
)
def test_wrong_flags_are_one_sentence(tiny_recipe, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        inspect(tiny_recipe, "sheet.png", *flags)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_near(dataset):
    name = Path(dataset.pairs[0][0]).name
    with pytest.raises(UsageError, match=r"did you mean \w+_leftImg8bit\.png\?"):
        inspect_batch.find(dataset, name.replace("_0000", "_00o0", 1), 0)
