# SPDX-License-Identifier: Apache-2.0
"""Names from before modules had rooms."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import paddle
import pytest

from hmsa import former

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "name", "home"),
    [
        ("hmsa.config", "load_config", "hmsa.config.reading"),
        ("hmsa.environment", "prepare", "hmsa.system.environment"),
        ("hmsa.weights", "SCHEMES", "hmsa.weights.names"),
        ("hmsa.datasets.pictures", "read_image", "hmsa.datasets.images"),
        ("hmsa.metrics", "confusion_matrix", "hmsa.metrics.confusion"),
        ("hmsa.distributed", "world_size", "hmsa.distributed.ranks"),
    ],
)
def test_a_former_name_is_what_it_was_and_warns(module, name, home):
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is {home}.{name} now"):
        found = getattr(import_module(module), name)
    assert found is getattr(import_module(home), name)


def test_renamed_functions_are_found():
    with pytest.warns(DeprecationWarning, match="is hmsa.datasets.find.find_images now"):
        assert import_module("hmsa.engine.predict").find_pictures is import_module("hmsa.datasets.find").find_images
    logits = paddle.to_tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])
    assert import_module("hmsa.engine.inference").restore(logits, []).tolist() == [[1, 0]]


def test_every_place_exists():
    for places in former._PLACES.values():
        for place in places.split():
            import_module(f"hmsa.{place}")


@pytest.mark.parametrize(
    "code", ["from hmsa.config import nothing", "import hmsa.nothing", "import hmsa.weights.nothing"]
)
def test_what_never_was_is_an_import_error(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Error: " in run.stderr and "RecursionError" not in run.stderr
