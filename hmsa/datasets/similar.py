# SPDX-License-Identifier: Apache-2.0
"""Images that show nearly the same: saved again, made smaller, or taken a moment later."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 9
"""Of the small picture of an image, [SIDE, SIDE] of grey, by which images are compared."""

_BANDS = 8
_MAX_DIFFERENT = 7  # bits of 128: two hashes as near as that agree in at least one band
_STEP = 4  # grey levels: less is as good as none, and would differ in what is saved again
_LEAST_CORRELATION = 0.98
_LEAST_CONTRAST = 2.0  # grey levels; flatter images have no structure to compare
_MAX_BUCKET = 2000  # hashes that are compared with each other


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The small picture, uint8 [SIDE, SIDE], of an image uint8 [H, W, 3]."""
    return cv2.cvtColor(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Images that show nearly the same as an earlier one, int64 [M, 2]: the first such one, and the later image.

    Images are hashed by whether each cell of the small picture is lighter than the next one to the right, and below
    (Krawetz's difference hash, 128 bits). Hashes are compared where one of 8 bands is the same, so that the time grows
    with the images and not with their square; those that are near are compared by correlation.

    Args:
        thumbnails: uint8 [N, SIDE, SIDE].
    """
    small = thumbnails.astype(np.int16)
    differences = [small[:, :8, 1:] > small[:, :8, :-1] + _STEP, small[:, 1:, :8] > small[:, :-1, :8] + _STEP]
    bits = np.stack(differences, axis=1).reshape(len(small), 128)
    bands = np.packbits(bits, axis=1).view(np.uint16)  # [N, 8]

    flat = small.reshape(len(small), SIDE * SIDE).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    contrast = np.sqrt((flat**2).mean(axis=1))
    flat /= np.maximum(contrast, 1e-6)[:, np.newaxis] * SIDE  # of which products are correlations
    chosen = np.flatnonzero(contrast >= _LEAST_CONTRAST)
    if not len(chosen):
        return np.empty((0, 2), np.int64)

    # Equal hashes stand for one, the first.
    _, first, group = np.unique(bands[chosen], axis=0, return_index=True, return_inverse=True)
    earliest = _earliest_near(bands, flat, np.sort(chosen[first]))
    representative = chosen[first][group.ravel()]
    candidates = [earliest[representative], representative]
    for partner in candidates:
        free = (earliest[chosen] == len(small)) & (partner < chosen)
        correlation = np.einsum("ij,ij->i", flat[chosen[free]], flat[partner[free]])
        earliest[chosen[free]] = np.where(correlation >= _LEAST_CORRELATION, partner[free], len(small))
    later = np.flatnonzero(earliest < len(small))
    return np.stack([earliest[later], later], axis=1)


def _earliest_near(bands: np.ndarray, flat: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each of N images the first of the `chosen`, which are in order, that it is near to; N if there is none."""
    earliest = np.full(len(bands), len(bands))
    ones = np.array([bin(number).count("1") for number in range(2**16)], np.uint8)
    for band in range(_BANDS):
        order = chosen[np.argsort(bands[chosen, band], kind="stable")]
        ends = np.flatnonzero(np.diff(bands[order, band].astype(np.int32))) + 1
        for bucket in np.split(order, ends):
            if len(bucket) > _MAX_BUCKET:  # such as of dark skies; other bands tell them apart
                continue
            hashes = bands[bucket]
            for place, image in enumerate(bucket[:-1]):
                different = ones[hashes[place + 1 :] ^ hashes[place]].sum(axis=1, dtype=np.int32)
                near = bucket[place + 1 :][different <= _MAX_DIFFERENT]
                if len(near):
                    near = near[flat[near] @ flat[image] >= _LEAST_CORRELATION]
                    earliest[near] = np.minimum(earliest[near], image)
    return earliest
