# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks need on disk: the toy data set and random weights of HRNet-W48, in output/benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "output/benchmark"
RECIPE = ROOT / "configs/mscale_ocr_cityscapes_autolabel_mapillary.yml"
FIVE_SCALES = ROOT / "configs/mscale_ocr_cityscapes_autolabel_mapillary_ms_val.yml"
WITHOUT_PRETRAINED = "model.pretrained=null"


def toy_data(name: str = "toy_cityscapes", **size: Any) -> Path:
    """A drawn data set with its labels converted; by default, for evaluation, with the images of `make demo`."""
    folder = FOLDER / name
    if not folder.is_dir():
        from hmsa.datasets.convert import convert_all, fine_jobs, train_ids, write_label
        from hmsa.toy.cityscapes import write_toy_cityscapes

        write_toy_cityscapes(
            folder, **{"size": (128, 256), "train": 1, "coarse": 1, "val": 16, "test": 1, **size}, seed=42
        )
        convert_all(
            fine_jobs(folder), lambda job: write_label(job.target, train_ids(job.source), colored=False), num_workers=2
        )
    return folder


def weights() -> Path:
    """Newly initialised weights of the recipe's network."""
    path = FOLDER / "w48.pdparams"
    if not path.is_file():
        import paddle

        from hmsa import builder, load_config

        path.parent.mkdir(parents=True, exist_ok=True)
        paddle.save(builder.build_model(load_config(RECIPE, [WITHOUT_PRETRAINED])).state_dict(), str(path))
    return path


def network(engine: str, recipe: Path = RECIPE) -> Any:
    """The recipe's network, run by an engine whose programs are in its cache."""
    from hmsa import builder, load_config

    return builder.open_network(load_config(recipe), str(weights()), backend=engine, precision="fp32")[0]
