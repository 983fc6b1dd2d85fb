# SPDX-License-Identifier: Apache-2.0
"""`val`: weights, or predictions of any other tool; and Cityscapes' own evaluation beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import paddle
import pytest
from awaken import awaken

import hmsa
from hmsa.commands import val
from hmsa.errors import DataError, UsageError


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_recipe):
    path = tmp_path_factory.mktemp("weights") / "model.pdparams"
    paddle.save(awaken(hmsa.build_model(hmsa.load_config(tiny_recipe))).state_dict(), str(path))
    return path


def run(recipe: Path, *words: object) -> None:
    val.main(val.make_parser().parse_args(["--config", str(recipe), *map(str, words)]))


def test_official_and_predictions_agree(tiny_recipe, weights, tmp_path, capsys):
    out, found = tmp_path / "a.json", tmp_path / "found"
    given = ["--engine", "eager", "--opts", "model.scales=[1.0]"]
    run(tiny_recipe, "--model_path", weights, "--official", "--save_predictions", found, "--output", out, *given)
    said = capsys.readouterr().out
    assert "cityscapesscripts finds the same IoU for every class and category, to the last digit" in said
    assert "IoU of the category vehicle" in said and "average of categories" in said
    ours = json.loads(out.read_text())
    assert len(ours["official"]["classScores"]) == 34 and len(ours["category_iou"]) == 7
    assert ours["official"]["categoryScores"]["void"] is None
    for name, iou in ours["iou"].items():
        assert iou == ours["official"]["classScores"][name]

    run(tiny_recipe, "--predictions", found, "--values", "ids", "--official", "--output", tmp_path / "b.json")
    theirs = json.loads((tmp_path / "b.json").read_text())
    for key in ("iou", "boundary_iou", "image_iou", "confusion_matrix", "category_iou", "official", "mean_iou"):
        assert theirs[key] == ours[key], key
    assert (theirs["weights_sha256"], theirs["values"], theirs["predictions"]) == (None, "ids", str(found))
    assert "ece" not in theirs

    next(found.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="expected one PNG for each of 3 images"):
        run(tiny_recipe, "--predictions", found, "--values", "ids", "--output", tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_report_changes_no_score_and_is_told_last(tiny_recipe, weights, tmp_path, capsys):
    given = ["--model_path", weights, "--engine", "eager"]
    run(tiny_recipe, *given, "--output", tmp_path / "plain.json")
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("earlier")
    more = ["--report", page, "--report_images", 1, "--compare", tmp_path / "plain.json"]
    capsys.readouterr()
    run(tiny_recipe, *given, "--output", tmp_path / "reported.json", *more)
    kept, last = capsys.readouterr().out.splitlines()[-2:]
    assert kept == f"the earlier report is kept as {page / 'index.1.html'}"
    assert (page / "index.1.html").read_text() == "earlier"
    assert last == f"report: {page / 'index.html'}"
    plain, reported = (json.loads((tmp_path / name).read_text()) for name in ("plain.json", "reported.json"))
    shares = reported.pop("decided_shares")
    for key in reported.keys() - {"seconds", "peak_memory_bytes"}:
        assert reported[key] == plain[key], key
    for cells in shares.values():
        for of_scales in cells.values():
            assert sum(of_scales.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected --model_path, weights, or --predictions, a folder of label PNGs, found neither"),
        (["--model_path", "a", "--predictions", "b"], "found both"),
        (["--predictions", "b"], "expected --values ids or train_ids"),
        (["--model_path", "a", "--values", "ids"], "expected --values together with --predictions"),
        (["--predictions", "b", "--values", "train_ids", "--official"], "cityscapesscripts reads label ids"),
        (["--predictions", "b", "--values", "ids", "--aug_eval"], "expected --aug_eval together with --model_path"),
        (["--predictions", "b", "--values", "ids", "--report", "c"], "expected --report together with --model_path"),
        (
            ["--predictions", "b", "--values", "ids", "--engine", "eager", "--precision", "bf16", "--num_workers", "2"],
            "expected --engine and --precision and --num_workers together with --model_path",
        ),
        (["--model_path", "a", "--compare", "b"], "expected --compare together with --report"),
        (["--model_path", "a", "--report", "b", "--compare", "no.json"], "found no file that can be read"),
    ],
)
def test_flags_that_do_not_go_together(tiny_recipe, words, said):
    with pytest.raises(UsageError, match=said):
        run(tiny_recipe, *words)


@pytest.mark.parametrize(
    "damage",
    [{"iou": []}, {"config": None}, {"config": {}}, {"mean_iou": None}, {"mean_iou": "abc"}, {"mean_iou": 1e308}],
)
def test_a_damaged_result_is_not_compared_with(tmp_path, damage):
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps({"iou": {"road": 0.5}, "config": {"iters": 3}, "mean_iou": 0.5}))
    assert val.read_earlier(str(path))[1]["mean_iou"] == 0.5
    path.write_text(json.dumps({"iou": {"road": 0.5}, "config": {"iters": 3}, "mean_iou": 0.5, **damage}))
    with pytest.raises(UsageError, match="found something else; give what --output wrote"):
        val.read_earlier(str(path))


def test_processes_on_several_machines_are_told(monkeypatch, tmp_path):
    """Where the folder of the main one is not there."""
    monkeypatch.setattr("hmsa.distributed.ranks.decided_by_main", lambda make: str(tmp_path / "of another machine"))
    with pytest.raises(UsageError, match=r"found several: run it on one, with --nproc_per_node"), val.shared_folder():
        pass
