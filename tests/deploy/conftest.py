# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three images: of even size, of odd size, upright."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (75, 129), (128, 72)):
        patches = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        patches.resize((width, height), Image.Resampling.BILINEAR).save(folder / f"{width}x{height}.png")
    return folder
