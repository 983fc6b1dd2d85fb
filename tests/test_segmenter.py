# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from awaken import awaken
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import hmsa
from hmsa.config.reading import load_config
from hmsa.datasets.images import read_image
from hmsa.errors import DataError, UsageError
from hmsa.inference.video import Video, VideoWriter

sys.path.insert(0, str(Path(__file__).parent.parent))
import export
import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_recipe):
    """run/best_model, a checkpoint with its recipe; and photos of different sizes and formats, one stored turned."""
    root = tmp_path_factory.mktemp("segmenter")
    checkpoint = root / "run/best_model"
    checkpoint.mkdir(parents=True)
    config = load_config(tiny_recipe, ["model.scales=[0.5, 1.0]"])
    (checkpoint / "config.yml").write_text(config.dump(), encoding="utf-8")
    paddle.save(awaken(hmsa.build_model(config)).state_dict(), str(checkpoint / "model.pdparams"))

    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (96, 64), "b ü.jpg": (129, 75), "c.png": (72, 128), "d.jpg": (130, 80)}.items():
        patches = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        image = Image.fromarray(patches).resize(size, Image.Resampling.BILINEAR)
        exif = Image.Exif()
        exif[274] = 6 if name == "d.jpg" else 1
        image.save(root / "photos" / name, exif=exif)
    return root


@pytest.fixture(scope="module")
def photos(folder):
    return sorted((folder / "photos").iterdir())


@pytest.fixture(scope="module")
def seg(folder):
    return hmsa.Segmenter(folder / "run/best_model", engine="eager")


def predicted(folder, save_dir, *flags):
    """What predict.py writes of the photos, uint8 [H, W] each."""
    checkpoint = folder / "run/best_model"
    given = ["--config", checkpoint / "config.yml", "--model_path", checkpoint, "--image_path", folder / "photos"]
    predict.main(predict.make_parser().parse_args([*map(str, given), "--save_dir", str(save_dir), *flags]))
    return [np.asarray(Image.open(path)) for path in sorted((save_dir / "pseudo_color_prediction").iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"engine": "eager"}, ["--engine", "eager"]),
        ({}, []),
        (
            {"engine": "eager", "flip_horizontal": True, "scales": [0.5, 1]},
            ["--engine", "eager", "--aug_pred", "--flip_horizontal", "--scales", "0.5", "1"],
        ),
        (
            {"engine": "eager", "flip_horizontal": True, "opts": ["test_config.average=softmax"]},
            ["--engine", "eager", "--aug_pred", "--flip_horizontal", "--opts", "test_config.average=softmax"],
        ),
    ],
    ids=["eager", "auto", "augmented", "probabilities"],
)
def test_labels_are_those_of_predict(folder, photos, tmp_path, options, flags):
    seg = hmsa.Segmenter(folder / "run/best_model", **options)
    expected = predicted(folder, tmp_path, *flags)
    assert len(np.unique(expected[0])) > 1
    for path, labels in zip(photos, expected):
        result = seg(path)
        assert result.labels.dtype == np.uint8
        assert_array_equal(result.labels, labels)

        assert result.probabilities.dtype == np.float32
        assert result.probabilities.shape == (19, *labels.shape)
        assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
        assert_allclose(result.confidence, result.probabilities.max(axis=0), rtol=1e-6)
        chosen = np.take_along_axis(result.probabilities, labels[np.newaxis].astype(int), axis=0)[0]
        assert_array_equal(chosen, result.probabilities.max(axis=0))


def test_every_way_of_giving_an_image(seg, photos):
    for path in photos:
        expected = seg(path)
        assert_array_equal(expected.image, read_image(path))
        with path.open("rb") as file, Image.open(path) as pil:
            given = [str(path), path.read_bytes(), bytearray(path.read_bytes()), file, pil, expected.image]
            for result in map(seg, given):
                assert_array_equal(result.image, expected.image)
                assert_array_equal(result.labels, expected.labels)


def test_transparent_and_grey_images(seg):
    rng = np.random.default_rng(0)
    for mode in ("RGBA", "LA", "L", "P", "1"):
        pil = Image.fromarray(rng.integers(0, 256, (64, 64, 4), np.uint8)).convert(mode)
        buffer = io.BytesIO()
        pil.save(buffer, "PNG")
        assert_array_equal(seg(pil).image, seg(buffer.getvalue()).image)


def test_lists_arrays_and_iterators(seg, photos):
    expected = [seg(path) for path in photos]

    for found in (seg(photos), seg(tuple(photos))):
        assert isinstance(found, list)
        for result, right in zip(found, expected):
            assert_array_equal(result.labels, right.labels)
            assert_array_equal(result.confidence, right.confidence)  # made anew for all but the last
    assert seg([]) == []

    batch = np.stack([expected[0].image, expected[0].image[::-1]])
    assert_array_equal(seg(batch)[0].labels, expected[0].labels)
    assert_array_equal(seg(batch)[1].labels, seg(batch[1]).labels)


def test_an_iterator_is_loaded_ahead_and_no_further(seg, photos):
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield photos[0]

    results = seg(endless())
    assert not isinstance(results, list) and not asked
    first = next(results)
    assert 1 < len(asked) < 10
    assert_array_equal(first.labels, seg(photos[0]).labels)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("segmenter")]


def test_an_error_comes_in_its_place(seg, photos):
    def images():
        yield photos[0]
        yield b"no image"

    results = seg(images())
    next(results)
    with pytest.raises(DataError, match="image 1 should be a readable image"):
        next(results)

    def broken():
        yield photos[0]
        raise OSError("the camera is gone")

    results = seg(broken())
    next(results)
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "inference"])
def test_threads_get_what_one_after_the_other_get(folder, photos, engine):
    seg = hmsa.Segmenter(folder / "run/best_model", engine=engine)

    def everything(path):
        result = seg(path)
        return result.labels, result.probabilities, result.confidence, *(result.attention or {}).values()

    expected = [everything(path) for path in photos]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(everything, photos * 3))
    for given, right in zip(found, expected * 3):
        assert len(given) == 5
        for ours, theirs in zip(given, right):
            assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_segmenters_in_two_threads(folder, seg, photos):
    other = hmsa.Segmenter(folder / "run/best_model", engine="inference")
    expected = [[one(path).labels for path in photos] for one in (seg, other)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: [result.labels for result in one(iter(photos))], (seg, other)))
    for ours, theirs in zip(found, expected):
        for labels, right in zip(ours, theirs):
            assert_array_equal(labels, right)


@pytest.mark.parametrize("engine", ["eager", "inference"])
def test_attention_is_that_of_the_network(folder, photos, engine):
    config = load_config(folder / "run/best_model/config.yml")
    model = hmsa.build_model(config)
    hmsa.load_weights(model, folder / "run/best_model")
    model.eval()
    result = hmsa.Segmenter(folder / "run/best_model", engine=engine)(photos[0])
    x = (result.image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with paddle.no_grad():
        expected = model(paddle.to_tensor(x.astype(np.float32).transpose(2, 0, 1)[np.newaxis]), return_attention=True)

    assert list(result.attention) == [0.5, 1.0] and result.no_attention == ""
    for scale, attention in result.attention.items():
        assert attention.shape == result.labels.shape and attention.dtype == np.float32
        assert 0 <= attention.min() < attention.max() <= 1
        right = expected[f"attention_{scale:g}"]
        if scale != 1:
            right = paddle.nn.functional.interpolate(right, attention.shape, mode="bilinear")
        assert_allclose(attention, right[0, 0].numpy(), atol=1e-4)


def test_what_each_scale_says_and_decides(folder, photos):
    result = hmsa.Segmenter(folder / "run/best_model", engine="eager")(photos[0])
    assert list(result.decided) == list(result.scales) == [0.5, 1.0]
    assert_array_equal(result.decided[0.5], result.attention[0.5])
    assert_allclose(result.decided[1.0], 1 - result.attention[0.5], atol=1e-6)
    alone = hmsa.Segmenter(folder / "run/best_model", engine="eager", opts=["model.scales=[1.0]"])(photos[0])
    assert_array_equal(result.scales[1.0], alone.labels)
    assert_array_equal(alone.scales[1.0], alone.labels)


def test_attention_is_averaged_like_the_answer(folder, photos):
    """Also where probabilities are: attention is none."""
    options = {"flip_horizontal": True, "opts": ["test_config.average=softmax"], "engine": "eager"}
    seg = hmsa.Segmenter(folder / "run/best_model", **options)
    plain = hmsa.Segmenter(folder / "run/best_model", engine="eager")
    image = seg(photos[0]).image
    mirrored = plain(image[:, ::-1]).attention[0.5][:, ::-1]
    assert_allclose(seg(image).attention[0.5], (plain(image).attention[0.5] + mirrored) / 2, atol=1e-5)


def test_transforms_that_resize_and_pad_are_undone(folder, photos):
    mean = "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]"
    resize = "{type: Resize, target_size: [64, 64]}, {type: Padding, target_size: [96, 96]}"
    transforms = f"val_dataset.transforms=[{resize}, {{type: Normalize, {mean}}}]"
    seg = hmsa.Segmenter(folder / "run/best_model", engine="eager", opts=[transforms])
    for path in photos:
        result = seg(path)
        assert result.labels.shape == result.image.shape[:2] == result.attention[0.5].shape == result.confidence.shape


def test_pixels_are_the_callers_own(seg, photos):
    pixels = read_image(photos[0])
    result = seg(pixels)
    seg(photos[1])  # so that the scores are no longer kept
    before = pixels.copy()
    pixels[:] = 0
    assert_array_equal(result.image, before)
    assert_array_equal(result.confidence, seg(photos[0]).confidence)


def test_one_results_scores_are_kept(seg, photos):
    first = seg(photos[0])
    assert first._scores is not None
    results = seg(photos)
    assert first._scores is None
    assert [result._scores is None for result in results] == [True] * (len(photos) - 1) + [False]
    confidence, again = results[-1].confidence, results[-1].confidence
    assert confidence is again


def test_overlay_and_file(seg, photos, tmp_path):
    result = seg(photos[0])
    assert_array_equal(result.overlay(0), result.image)
    colors = np.array(result.classes.colors, np.uint8)
    assert_array_equal(result.overlay(1), colors[result.labels])
    assert result.overlay().size == result.image.shape[1::-1]
    with pytest.raises(UsageError, match="expected an opacity from 0 to 1, found 40"):
        result.overlay(40)

    result.save(tmp_path / "new" / "labels.PNG")
    with Image.open(tmp_path / "new" / "labels.PNG") as written:
        assert_array_equal(written, result.labels)
        assert_array_equal(written.convert("RGB"), colors[result.labels])
    with pytest.raises(UsageError, match=r"labels\.jpg: expected a name that ends in \.png"):
        result.save(str(tmp_path / "labels.jpg"))
    assert Image.open(io.BytesIO(result._repr_png_())).size == result.image.shape[1::-1]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (np.zeros((8, 8)), r"found float64 \[8, 8\]: repeat the grey channel"),
        (np.zeros((8, 8, 4), np.uint8), "leave out the fourth channel"),
        (np.zeros((3, 8, 8), np.uint8), "put the channels last"),
        (np.zeros((8, 8, 3), np.float32), r"scale it to 0\.\.255"),
        (np.zeros((0, 8, 3), np.uint8), "give one image, or a list"),
        (None, "a NumPy array, found a NoneType"),
        (Image.new("I;16", (8, 8)), "the image should be a readable image, but: its mode is I;16"),
        (b"", "the image should be a readable image"),
        ("missing.jpg", "missing.jpg should be a readable file"),
        (".", "expected an image, found a folder: give its images"),
        ([np.zeros((8, 8))], "expected image 0 to be uint8"),
    ],
)
def test_wrong_images(seg, given, error):
    with pytest.raises((DataError, UsageError), match=error) as raised:
        seg(given)
    assert "\n" not in str(raised.value)


def test_a_model_or_an_engine_that_is_none_is_a_sentence():
    with pytest.raises(UsageError, match="or a recipe, found a NoneType: give its path"):
        hmsa.Segmenter(None)
    with pytest.raises(UsageError, match="the name of an engine, found 'openvin': did you mean openvino"):
        hmsa.Segmenter("best_model", engine="openvin")


@pytest.mark.parametrize("engine", ["eager", "inference"])
def test_the_smallest_images(folder, engine):
    seg = hmsa.Segmenter(folder / "run/best_model", engine=engine)
    with pytest.raises(DataError, match=r"expected an image of which scale 0\.5 leaves a pixel, found one of 1x1"):
        seg(np.zeros((1, 1, 3), np.uint8))
    assert seg(np.zeros((2, 3, 3), np.uint8)).labels.shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nothing"], "found nothing of this name; correct the path"),
        (["run"], r"run: expected weights or the folder of a checkpoint.*\(best_model\)"),
        (["run/best_model/config.yml"], "expected weights with this recipe, found none"),
        (["bare"], r"expected config\.yml beside the weights"),
        (["run/best_model/config.yml", "missing.pdparams"], "expected a weight file, found none"),
    ],
)
def test_wrong_models(folder, arguments, error, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "bare").mkdir(exist_ok=True)
    (folder / "bare/model.pdparams").touch()
    with pytest.raises((DataError, UsageError), match=error):
        hmsa.Segmenter(*arguments)


def test_a_recipe_and_weights(folder, seg, photos):
    checkpoint = folder / "run/best_model"
    expected = seg(photos[0]).labels
    for arguments in (
        [checkpoint / "config.yml", checkpoint / "model.pdparams"],
        [str(checkpoint / "config.yml"), str(checkpoint)],
        [checkpoint, checkpoint / "model.pdparams"],
        [checkpoint / "model.pdparams"],
    ):
        assert_array_equal(hmsa.Segmenter(*arguments, engine="eager")(photos[0]).labels, expected)


@pytest.mark.slow
@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
def test_an_export(folder, seg, photos, tmp_path, output_op):
    checkpoint = folder / "run/best_model"
    given = ["--config", checkpoint / "config.yml", "--model_path", checkpoint, "--save_dir", tmp_path / "model"]
    export.main(export.make_parser().parse_args([*map(str, given), "--output_op", output_op]))
    exported = hmsa.Segmenter(tmp_path / "model")
    assert exported.classes == hmsa.Segmenter(checkpoint).classes.__class__(
        seg.classes.names, seg.classes.colors, seg.classes.ignore_index
    )

    for path in photos:
        result, right = exported(path), seg(path)
        assert result.labels.dtype == np.uint8
        assert (result.labels == right.labels).mean() > 0.999
        assert result.attention is None and "open the checkpoint" in result.no_attention
        if output_op == "argmax":
            with pytest.raises(UsageError, match="export with output_op softmax"):
                _ = result.confidence
        else:
            assert_allclose(result.probabilities, right.probabilities, atol=1e-3)
            assert_allclose(result.confidence, right.confidence, atol=1e-3)

    for options, said in (
        ({"engine": "eager"}, "expected an engine, found 'eager'"),
        ({"precision": "bf16"}, "expected paddle in bf16, which paddle reads, found paddle fp32"),
        ({"opts": ["seed=1"]}, "expected an export, which runs as it was written, without opts"),
    ):
        with pytest.raises(UsageError, match=said):
            hmsa.Segmenter(tmp_path / "model", **options)
    with pytest.raises(DataError, match=r"expected images of at least 2 pixels each way, .* found 40x1: enlarge"):
        exported(np.zeros((1, 40, 3), np.uint8))
    if output_op == "argmax":
        with pytest.raises(UsageError, match="export with output_op none"):
            hmsa.Segmenter(tmp_path / "model", flip_horizontal=True)
    else:
        with pytest.raises(UsageError, match=r"expected scales from 1/16 to 16, found \[0\.0\]"):
            hmsa.Segmenter(tmp_path / "model", scales=[0])
        flipped = hmsa.Segmenter(tmp_path / "model", flip_horizontal=True)(photos[0])
        assert (flipped.labels != seg(photos[0]).labels).any()


@pytest.mark.slow
def test_an_export_with_all_that_it_can_give_in_any_engine(folder, seg, photos, tmp_path):
    pytest.importorskip("openvino", reason="needs the package openvino: pip install .[openvino]")
    checkpoint = folder / "run/best_model"
    given = ["--config", checkpoint / "config.yml", "--model_path", checkpoint, "--save_dir", tmp_path / "model"]
    flags = ["--format", "openvino", "--with_confidence", "--with_attention", "--preprocess"]
    export.main(export.make_parser().parse_args([*map(str, given), *flags]))
    for engine in ("auto", "openvino"):
        exported = hmsa.Segmenter(tmp_path / "model", engine=engine)
        for path in photos:
            result, right = exported(path), seg(path)
            assert (result.labels == right.labels).mean() > 0.999
            assert_allclose(result.confidence, right.confidence, atol=1e-3)
            assert list(result.attention) == list(right.attention)
            for scale, expected in right.attention.items():
                assert_allclose(result.attention[scale], expected, atol=1e-3)


@pytest.mark.slow
def test_an_export_of_one_size(folder, photos, tmp_path):
    checkpoint = folder / "run/best_model"
    given = ["--config", checkpoint / "config.yml", "--model_path", checkpoint, "--save_dir", tmp_path / "model"]
    export.main(export.make_parser().parse_args([*map(str, given), "--input_shape", "1", "3", "64", "96"]))
    exported = hmsa.Segmenter(tmp_path / "model")
    assert exported(photos[0]).labels.shape == (64, 96)
    with pytest.raises(DataError, match=r"expected an image of 96x64 .*, found 129x75: resize it"):
        exported(photos[1])


def test_a_video_is_gone_through(seg, tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with VideoWriter(tmp_path / "a.avi", 25) as writer:
        for _ in range(7):
            writer.write(frame)
    video = Video.open(tmp_path / "a.avi")
    results = list(seg(video))
    assert len(results) == 7
    for result, image in zip(results, video):
        assert_array_equal(result.image, image)
