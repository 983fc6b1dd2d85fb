# SPDX-License-Identifier: Apache-2.0
"""Each transform against hand-computed cases and against PaddleSeg's own."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import with_defaults as C
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from hmsa.datasets import transforms as T
from hmsa.errors import DataError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured image with every level, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def sample_of(image: np.ndarray, label: np.ndarray | None = None) -> T.Sample:
    sample: T.Sample = {"img": image, "trans_info": [], "gt_fields": []}
    if label is not None:
        sample |= {"label": label, "gt_fields": ["label"]}
    return sample


def apply(transform: T.Transform, image: np.ndarray, label: np.ndarray | None = None, seed: int = 0) -> T.Sample:
    return transform(sample_of(image.copy(), label), np.random.default_rng(seed))


# Geometry: image and label must move together.


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label that both say where each pixel came from."""
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.repeat(label[..., None], 3, axis=2), label


def test_flip_mirrors_picture_and_label():
    image, label = coordinates(2, 3)
    flipped = apply(C.RandomHorizontalFlip(prob=1.0), image, label)
    assert flipped["label"].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert flipped["img"][..., 0].tolist() == flipped["label"].tolist()
    assert apply(C.RandomHorizontalFlip(prob=0.0), image, label)["label"].tolist() == label.tolist()


def test_flip_has_its_probability():
    image, _ = coordinates(1, 2)
    rng = np.random.default_rng(0)
    flips = sum(C.RandomHorizontalFlip(prob=0.3)(sample_of(image), rng)["img"][0, 0, 0] == 1 for _ in range(2000))
    assert 520 < flips < 680  # 600 +- 4 standard deviations


def test_crop_takes_the_same_window_of_both_and_reaches_every_place():
    image, label = coordinates(5, 6)
    crop = C.RandomPaddingCrop(crop_size=(4, 3))  # width, height
    corners = set()
    for seed in range(200):
        cut = apply(crop, image, label, seed)
        assert cut["label"].shape == (3, 4)
        assert (cut["img"] == cut["label"][..., None]).all()
        first = int(cut["label"][0, 0])
        assert (cut["label"] == label[first // 6 :, first % 6 :][:3, :4]).all()
        corners.add(divmod(first, 6))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_crop_pads_at_the_bottom_and_right():
    image, label = coordinates(2, 3)
    cut = apply(C.RandomPaddingCrop(crop_size=(2, 4)), image, label)
    assert cut["img"].shape == (4, 2, 3)
    assert (cut["img"][2:] == 127).all()  # PaddleSeg's 127.5 as a byte
    assert (cut["label"][2:] == 255).all()
    assert (cut["img"][:2] == cut["label"][:2, :, None]).all()


def test_crop_is_drawn_again_while_one_class_has_too_much_of_it():
    label = np.zeros((8, 32), np.uint8)
    label[:, 24:28], label[:, 28:] = 1, 255  # of windows 8 wide, three quarters are class 0 alone
    image = np.repeat(label[..., None], 3, axis=2)
    once = C.RandomPaddingCrop(crop_size=(8, 8))
    often = C.RandomPaddingCrop(crop_size=(8, 8), category_max_ratio=0.75, loop_times=1000)

    def share(crop: T.RandomPaddingCrop, seed: int) -> float:
        cut = apply(crop, image, label, seed)
        assert (cut["img"][..., 0] == cut["label"]).all()
        counts = np.bincount(cut["label"].ravel(), minlength=256)[:255]
        return counts.max() / counts.sum()

    assert max(share(once, seed) for seed in range(50)) == 1
    # A window of class 1 and ignored pixels has one class: it is drawn again, too.
    assert {share(often, seed) for seed in range(50)} <= {2 / 3, 4 / 7, 0.5, 3 / 5, 5 / 8, 6 / 8 - 1e-9, 5 / 7}
    seldom = C.RandomPaddingCrop(crop_size=(8, 8), category_max_ratio=0.75, loop_times=1)
    assert 0 < sum(share(seldom, seed) == 1 for seed in range(50)) < sum(share(once, seed) == 1 for seed in range(50))


def test_crop_counts_padding_as_paddleseg_does_and_needs_a_label_to_count():
    image, label = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    crop = C.RandomPaddingCrop(crop_size=(8, 4), category_max_ratio=0.6, label_padding_value=1)
    rng = np.random.default_rng(0)
    crop(sample_of(image, label), rng)
    assert rng.random() == drawn_before(np.random.default_rng(0), 2)  # half of it is class 1: the first window is taken
    assert apply(crop, image)["img"].shape == (4, 8, 3)


def drawn_before(rng: np.random.Generator, times: int) -> float:
    for _ in range(times):
        rng.integers(1)
    return rng.random()


def test_a_crop_that_looks_at_the_label_is_not_fused():
    pair = (C.ResizeStepScaling(), C.RandomPaddingCrop(category_max_ratio=0.75))
    assert T.fused(pair) == pair


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_crop_always_has_its_size(height, width, crop_height, crop_width, seed):
    image, label = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    cut = apply(C.RandomPaddingCrop(crop_size=(crop_width, crop_height)), image, label, seed)
    assert cut["img"].shape == (crop_height, crop_width, 3)
    assert int((cut["label"] == 0).sum()) == min(height, crop_height) * min(width, crop_width)


def test_scaling_draws_every_step_evenly():
    scaling = C.ResizeStepScaling(min_scale_factor=0.5, max_scale_factor=2.0, scale_step_size=0.25)
    rng = np.random.default_rng(0)
    widths = [scaling(sample_of(np.zeros((20, 40, 3), np.uint8)), rng)["img"].shape[1] for _ in range(1400)]
    values, counts = np.unique(widths, return_counts=True)
    assert values.tolist() == [20, 30, 40, 50, 60, 70, 80]
    assert counts.min() > 140 and counts.max() < 260  # 200 +- 4.6 standard deviations


def test_scaling_without_a_step_covers_the_interval_evenly():
    scaling = C.ResizeStepScaling(min_scale_factor=0.5, max_scale_factor=2.0, scale_step_size=0)
    rng = np.random.default_rng(0)
    factors = [scaling(sample_of(np.zeros((1, 1000, 3), np.uint8)), rng)["img"].shape[1] / 1000 for _ in range(500)]
    assert 0.5 <= min(factors) < 0.52 and 1.98 < max(factors) <= 2.0
    assert np.mean(factors) == pytest.approx(1.25, abs=0.08)


def test_scaling_keeps_label_values():
    image, label = picture(30, 40), np.where(np.arange(40) < 20, 3, 255).astype(np.uint8)[None].repeat(30, 0)
    scaled = apply(C.ResizeStepScaling(min_scale_factor=1.37, max_scale_factor=1.37), image, label)
    assert scaled["img"].shape[:2] == scaled["label"].shape == (41, 55)
    assert set(np.unique(scaled["label"])) == {3, 255}


sides, crop_sides = st.integers(1, 90), st.integers(1, 90)


@settings(max_examples=300, deadline=None)
@given(st.tuples(sides, sides), st.tuples(crop_sides, crop_sides), st.floats(0.5, 2.0), st.integers(0, 10**6))
@example((31, 24), (4, 7), 0.97, 0)  # the corner alone keeps its size, the whole does not
@example((40, 40), (20, 20), 0.5, 3)
@example((1, 1), (9, 9), 2.0, 0)
def test_scaling_and_crop_in_one_are_the_two(size, crop_size, factor, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(0, 256, size, dtype=np.uint8)
    pair = (
        C.ResizeStepScaling(min_scale_factor=factor, max_scale_factor=factor, scale_step_size=0),
        C.RandomPaddingCrop(crop_size=crop_size),
    )
    first, second = np.random.default_rng(seed), np.random.default_rng(seed)
    both = pair[1](pair[0](sample_of(image, label), first), first)
    (one,) = T.fused(pair)
    fused = one(sample_of(image, label), second)
    assert first.random() == second.random()  # as many draws
    assert fused["img"].shape == both["img"].shape
    assert np.abs(fused["img"].astype(int) - both["img"]).max() <= 1
    assert (fused["label"] == both["label"]).all()


def test_only_a_crop_right_after_a_scaling_is_fused():
    scaling, crop, flip = C.ResizeStepScaling(), C.RandomPaddingCrop(), C.RandomHorizontalFlip()
    apart = (crop, scaling, flip, crop, scaling)
    assert T.fused(apart) == apart
    assert [type(t) for t in T.fused([flip, scaling, crop, crop])] == [type(flip), T.ScaledCrop, type(crop)]


def test_resize_and_padding_say_how_to_undo_them():
    sample = apply(C.Resize(target_size=(8, 4)), picture(6, 10))
    sample = C.Padding(target_size=(9, 9))(sample, np.random.default_rng(0))
    assert sample["img"].shape == (9, 9, 3)
    assert sample["trans_info"] == [("resize", (6, 10)), ("padding", (4, 8))]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_size": (50, 20)}, (20, 50)),
        ({"target_size": (50, 20), "keep_ratio": True}, (20, 40)),
        ({"target_size": (20, 50), "keep_ratio": True}, (20, 40)),
        ({"target_size": (50, 20), "size_divisor": 16}, (32, 64)),
    ],
)
def test_resize_options(options, expected):
    assert apply(C.Resize(**options), picture(100, 200))["img"].shape[:2] == expected


def test_padding_refuses_larger_pictures():
    with pytest.raises(DataError, match=r"an image should be at most 8x8.*is 9x6"):
        apply(C.Padding(target_size=(8, 8)), picture(6, 9))


# Colours: the same factor must give what PIL, and so PaddleSeg, gives.


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.75, 0.93, 1.0, 1.1, 1.25, 1.5])
@pytest.mark.parametrize(
    ("ours", "theirs", "largest"),
    [
        (T.brightness, ImageEnhance.Brightness, 0),
        (T.contrast, ImageEnhance.Contrast, 1),
        (T.saturation, ImageEnhance.Color, 1),
        (T.sharpness, ImageEnhance.Sharpness, 0),
    ],
)
def test_enhancers_are_those_of_pil(ours, theirs, largest, factor):
    for image in (picture(60, 80), np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)):
        expected = np.asarray(theirs(Image.fromarray(image)).enhance(factor)).astype(int)
        difference = np.abs(ours(image, factor) - expected)
        assert difference.max() <= largest
        assert difference.mean() <= 0.1


@pytest.mark.parametrize("shift", [-63, -18, -10.3, 0.0, 5.5, 40.7, 63])
def test_hue_is_that_of_pil(shift):
    image = picture(60, 80)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] = hsv[..., 0] + np.float64(shift)  # wraps around, as in PaddleSeg
    expected = np.asarray(Image.frombytes("HSV", (80, 60), hsv.tobytes()).convert("RGB")).astype(int)
    difference = np.abs(T.hue(image, shift) - expected)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 12  # two steps of the hue at full colour
    assert (T.hue(image, shift).max(axis=2) == image.max(axis=2)).all()  # the value stays


def test_hue_by_hand():
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    assert T.hue(red, 85)[0, 0].tolist() == [0, 200, 0]
    assert T.hue(red, -85)[0, 0, 2] == 200
    grey = np.full((1, 1, 3), 90, np.uint8)
    assert T.hue(grey, 40)[0, 0].tolist() == [90, 90, 90]


@given(st.integers(0, 255), st.floats(0.0, 2.0))
@settings(max_examples=50, deadline=None)
def test_grey_has_no_saturation_to_change(level, factor):
    grey = np.full((1, 1, 3), level, np.uint8)
    assert (T.saturation(grey, factor) == grey).all()


def test_distort_draws_as_paddleseg_does():
    """Means and spreads of the pixels of many draws agree with PaddleSeg's."""
    from paddleseg.transforms import RandomDistort

    image = picture(12, 16)
    options = {
        "brightness_range": 0.25,
        "brightness_prob": 1.0,
        "contrast_range": 0.25,
        "contrast_prob": 0.5,
        "saturation_range": 0.25,
        "saturation_prob": 1.0,
        "hue_range": 63,
        "hue_prob": 0.8,
        "sharpness_range": 0.9,
        "sharpness_prob": 0.7,
    }
    rng, draws = np.random.default_rng(0), 1500
    ours = np.stack([C.RandomDistort(**options)(sample_of(image), rng)["img"] for _ in range(draws)])
    state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        theirs = np.stack([RandomDistort(**options)({"img": image.astype("float32")})["img"] for _ in range(draws)])
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
    spread = theirs.std(0)
    # 5 standard errors of a difference of means, and a level for what rounding differs by.
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread * np.sqrt(2 / draws) + 1).all()
    assert np.abs(ours.std(0) - spread).max() < 0.15 * spread.max()


def test_distort_obeys_probabilities_and_leaves_the_input_alone():
    image = picture(12, 16)
    before = image.copy()
    still = C.RandomDistort(brightness_prob=0, contrast_prob=0, saturation_prob=0, hue_prob=0)
    assert (apply(still, image)["img"] == image).all()
    only_brightness = C.RandomDistort(brightness_prob=1, contrast_prob=0, saturation_prob=0, hue_prob=0)
    result = only_brightness(sample_of(image), np.random.default_rng(3))["img"]
    assert (result != image).any()
    assert (image == before).all()


def test_sharpness_is_off_and_draws_nothing_unless_asked_for():
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    rngs = [np.random.default_rng(5) for _ in range(2)]
    plain, with_range = C.RandomDistort(), C.RandomDistort(sharpness_range=2.0)
    images = [transform(sample_of(image), rng)["img"] for transform, rng in zip((plain, with_range), rngs)]
    assert (images[0] == images[1]).all() and rngs[0].random() == rngs[1].random()
    others = dict.fromkeys(("brightness_prob", "contrast_prob", "saturation_prob", "hue_prob"), 0)
    assert (apply(C.RandomDistort(sharpness_prob=1, **others), image)["img"] != image).any()


def test_normalize_is_paddlesegs():
    from paddleseg.transforms import Normalize

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = picture(12, 16)
    ours = apply(C.Normalize(mean=mean, std=std), image)["img"]
    theirs = Normalize(mean=mean, std=std)({"img": image})["img"]
    assert ours.dtype == np.float32 and ours.shape == (12, 16, 3)
    assert ours.transpose(2, 0, 1).flags.c_contiguous
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.37, 2.0])
def test_scaling_is_paddlesegs_but_for_rounding(scale):
    from paddleseg.transforms import ResizeStepScaling

    image, label = picture(33, 47), np.random.default_rng(0).integers(0, 19, (33, 47), dtype=np.uint8)
    options = {"min_scale_factor": scale, "max_scale_factor": scale}
    ours = apply(C.ResizeStepScaling(**options), image, label)
    theirs = ResizeStepScaling(**options)(sample_of(image.astype("float32"), label))
    assert (ours["label"] == theirs["label"]).all()
    assert np.abs(ours["img"] - theirs["img"]).max() <= 1


def test_paddlesegs_transforms_draw_from_the_generator_given():
    from paddleseg.transforms import RandomDistort, RandomHorizontalFlip, RandomScaleAspect

    image, label = picture(24, 32), np.random.default_rng(0).integers(0, 19, (24, 32), dtype=np.uint8)
    chain = [T.PaddleSegTransform(theirs) for theirs in (RandomHorizontalFlip(), RandomScaleAspect(), RandomDistort())]

    def run(seed: int) -> T.Sample:
        sample, rng = sample_of(image.copy(), label), np.random.default_rng(seed)
        for transform in [*chain, C.Normalize()]:
            sample = transform(sample, rng)
        return sample

    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    alone = [run(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(run, range(12)))
    for one, other in zip(alone, together):
        assert (one["img"] == other["img"]).all() and (one["label"] == other["label"]).all()
    assert len({one["img"].tobytes() for one in alone}) == 12
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_same_generator_same_result():
    chain = [
        C.ResizeStepScaling(min_scale_factor=0.5, max_scale_factor=2, scale_step_size=0.25),
        C.RandomPaddingCrop(crop_size=(32, 24)),
        C.RandomHorizontalFlip(),
        C.RandomDistort(hue_range=63),
        C.Normalize(),
    ]

    def run(seed: int) -> T.Sample:
        sample, rng = sample_of(picture(40, 60), np.zeros((40, 60), np.uint8)), np.random.default_rng(seed)
        for transform in chain:
            sample = transform(sample, rng)
        return sample

    assert (run(5)["img"] == run(5)["img"]).all()
    assert any((run(5)["img"] != run(seed)["img"]).any() for seed in range(6, 9))
