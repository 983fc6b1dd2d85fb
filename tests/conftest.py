# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: the same preparation the scripts make, before Paddle is loaded."""

from pathlib import Path

import pytest

from hmsa.system.environment import prepare

prepare()


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory):
    """Inference programs of tests stay out of the user's cache; commands that tests start inherit the variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_small_network():
    """seed, options -> a small network in evaluation mode, with weights and statistics as different as trained ones."""
    from awaken import awaken

    from hmsa.models import BACKBONES, MscaleOCRNet

    def make(seed=2, **options):
        sizes = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}
        network = MscaleOCRNet(num_classes=5, backbone=BACKBONES["HRNet_W18_NV_Small_V1"](), **sizes, **options)
        return awaken(network, seed)

    return make


def draw_toy(root):
    """A small converted street world: 6 training images, 6 coarse ones, 3 for validation, 1 for testing."""
    from hmsa.datasets.convert import coarse_jobs, convert_all, fine_jobs, train_ids, write_label
    from hmsa.toy.cityscapes import write_toy_cityscapes

    write_toy_cityscapes(root, size=(64, 128), train=6, coarse=6, val=3, test=1)
    for jobs, colored in ((fine_jobs(root), False), (coarse_jobs(root), True)):
        convert_all(
            jobs, lambda job, c=colored: write_label(job.target, train_ids(job.source), colored=c), num_workers=1
        )
    return root


def write_tiny_recipe(toy_root):
    """A recipe with every part of the real one, at a size that trains in seconds."""
    path = toy_root / "tiny.yml"
    base = Path(__file__).parents[1] / "configs/mscale_ocr_toy.yml"
    path.write_text(
        f"""
_base_: {base}
batch_size: 2
iters: 4
model:
  ocr_mid_channels: 16
  ocr_key_channels: 8
  attention_mid_channels: 8
train_dataset:
  dataset_root: {toy_root}
  transforms:
    - type: ResizeStepScaling
      min_scale_factor: 0.5
      max_scale_factor: 2.0
      scale_step_size: 0
    - type: RandomPaddingCrop
      crop_size: [96, 64]
    - type: RandomHorizontalFlip
    - type: RandomDistort
      brightness_range: 0.25
      brightness_prob: 1
      hue_range: 63
      hue_prob: 1
    - type: Normalize
      mean: [0.485, 0.456, 0.406]
      std: [0.229, 0.224, 0.225]
val_dataset:
  dataset_root: {toy_root}
optimizer:
  beta2: 0.999
lr_scheduler:
  learning_rate: 0.006
  power: 2.0
  warmup_iters: 0
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    return draw_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def tiny_recipe(toy_root):
    return write_tiny_recipe(toy_root)
