# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: the same preparation the scripts make, before Paddle is loaded."""

import os
import subprocess
import sys
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


@pytest.fixture(scope="session")
def make_tiny_network():
    """seed, options -> a network with every part of the real one that is written and opened in a second; seed None: new
    weights."""
    from awaken import TinyBackbone, awaken

    from hmsa.models import MscaleOCRNet

    def make(seed=19, **options):  # whose answers have four classes
        sizes = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}
        network = MscaleOCRNet(num_classes=5, backbone=TinyBackbone(), **sizes, **options)
        return network if seed is None else awaken(network, seed)

    return make


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Paddle says that it computes on gpu:0, and rounds what goes into convolutions and products to TF32 as long as it
    does; on cpu it computes as ever. Every device that was set, in order."""
    import numpy as np
    import paddle
    from paddle import nn

    devices = ["gpu:0"]
    monkeypatch.setattr(paddle.device, "get_device", lambda: devices[-1])
    monkeypatch.setattr(paddle.device, "set_device", devices.append)

    def rounded(x):
        if devices[-1] == "cpu" or not paddle.in_dynamic_mode():
            return x
        bits = x.numpy().view(np.uint32)
        return paddle.to_tensor(((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32))

    for module, name in ((nn.functional, "conv2d"), (nn.functional.conv, "_conv_nd"), (paddle, "bmm")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda x, y, *rest, f=function, **options: f(rounded(x), rounded(y), *rest, **options)
        )
    return devices


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


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder in which `make demo` was run, whole: its recipe `toy.yml`, `data`, and `demo` with what it writes."""
    environment, root = Path(sys.prefix), Path(__file__).parents[1]
    if not (environment / "installed").exists():
        pytest.skip("the Makefile would set up another environment: run the tests with make test-all")
    folder = tmp_path_factory.mktemp("demo")
    data, run, recipe = folder / "data", folder / "demo", folder / "toy.yml"
    roots = "".join(f"{section}: {{dataset_root: {data}}}\n" for section in ("train_dataset", "val_dataset"))
    recipe.write_text(f"_base_: {root}/configs/mscale_ocr_toy.yml\n{roots}", encoding="utf-8")
    make = ["make", "demo", f"VENV={environment}", f"DATA={data}", f"RUN={run}", f"RECIPE={recipe}"]
    # As a user starts it, without what the tests themselves have set for this process alone.
    own = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")
    env = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(make, cwd=root, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
