# SPDX-License-Identifier: Apache-2.0
"""The notebook of docs/ runs as it stands, where `make demo` has left its network."""

from __future__ import annotations

import ast
from pathlib import Path

import paddle
import pytest
from awaken import awaken

import hmsa

NOTEBOOK = Path(__file__).parents[1] / "docs/segmenter.ipynb"

nbformat = pytest.importorskip("nbformat")


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_can_be_read_and_names_no_machine(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert "/home/" not in text and "/work/" not in text and "/tmp/" not in text


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, toy_root, tiny_recipe):
    from nbclient import NotebookClient

    checkpoint = tmp_path / "output/demo/model/best_model"
    checkpoint.mkdir(parents=True)
    config = hmsa.load_config(tiny_recipe)
    (checkpoint / "config.yml").write_text(config.dump(), encoding="utf-8")
    paddle.save(awaken(hmsa.build_model(config)).state_dict(), str(checkpoint / "model.pdparams"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/toy_cityscapes").symlink_to(toy_root)
    (tmp_path / "docs").mkdir()

    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "docs")}})
    client.execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(pictures) == 4
    assert (tmp_path / "output/labels.png").is_file()
