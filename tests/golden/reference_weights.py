# SPDX-License-Identifier: Apache-2.0
"""Deterministic weights for the golden vectors: every tensor is a function of its released name.

`reference_state(keys, GAIN[tag])` takes {name: shape} in the *released* naming (see
released_keys_*.json) and returns {name: float32 array}. No weight file is needed
to reproduce a golden output: load this state through the project's own loader
for released checkpoints and compare.
"""

import zlib

import numpy as np

GAIN = {"w18_small_v1": 1.1, "w48": 0.76}  # keeps each network's activations in a useful range


def reference_tensor(name, shape, gain):
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("_variance") or ("_batch_norm" in name and name.endswith(".weight")):
        value = rng.uniform(0.75, 1.25, shape)
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
        if shape[0] in (1, 19):  # classifiers: logits of a useful range
            value *= 3
    else:  # biases and running means
        value = rng.standard_normal(shape) * 0.05
    return value.astype("float32")


def reference_state(keys, gain):
    return {name: reference_tensor(name, tuple(shape), gain) for name, shape in keys.items()}


def reference_image(n, h, w, seed=1):
    """Normalised-image-like input, smooth plus noise. Shape [n, 3, h, w], float32."""
    rng = np.random.RandomState(seed)
    coarse = rng.standard_normal((n, 3, h // 8 + 2, w // 8 + 2))
    ys = np.linspace(0, coarse.shape[2] - 1.001, h)
    xs = np.linspace(0, coarse.shape[3] - 1.001, w)
    y0, x0 = ys.astype(int), xs.astype(int)
    fy, fx = (ys - y0)[:, None], (xs - x0)[None]
    a = coarse[:, :, y0][:, :, :, x0] * (1 - fy) * (1 - fx)
    a += coarse[:, :, y0 + 1][:, :, :, x0] * fy * (1 - fx)
    a += coarse[:, :, y0][:, :, :, x0 + 1] * (1 - fy) * fx
    a += coarse[:, :, y0 + 1][:, :, :, x0 + 1] * fy * fx
    return (a + 0.2 * rng.standard_normal(a.shape)).astype("float32")


def reference_label(n, h, w, num_classes=19, ignore=255, seed=2):
    """Blocky label map with about 10 % ignored pixels. Shape [n, h, w], int64."""
    rng = np.random.RandomState(seed)
    cells = rng.randint(0, num_classes + 2, (n, h // 8 + 1, w // 8 + 1))
    cells[cells >= num_classes] = ignore
    return np.kron(cells, np.ones((1, 8, 8), int))[:, :h, :w].astype("int64")
