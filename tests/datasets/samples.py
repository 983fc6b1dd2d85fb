# SPDX-License-Identifier: Apache-2.0
"""An image with its label, and files of them."""

import io

import cv2
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), (36, 24), interpolation=cv2.INTER_LINEAR)
LABEL = RNG.integers(0, 4, (24, 36), dtype=np.uint8)


def encoded(image: np.ndarray, form: str, **options) -> bytes:
    """The content of a file; `form` and `options` are Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()
