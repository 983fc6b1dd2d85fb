# SPDX-License-Identifier: Apache-2.0
"""A trained network as a function: an image in, the classes of its pixels out.

seg = hmsa.Segmenter("output/run/best_model")
result = seg("photo.jpg")
result.labels            # uint8 [H, W], numbers of result.classes
result.overlay().save("overlay.png")
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union, overload

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from PIL import Image
from pydantic import ValidationError

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.config.schema import InferenceSpec
from hmsa.datasets.bands import displayed
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.given import OneImage, is_one, pixels_of
from hmsa.datasets.transforms import Transform, fused
from hmsa.deploy.engines import Session, open_export
from hmsa.deploy.runtime import DEPLOY_FILE, Deployment, read_deployment
from hmsa.errors import DataError, UsageError, shown, suggest
from hmsa.inference.averaging import (
    InferenceOptions,
    best_classes,
    class_scores,
    confidences,
    probabilities,
    undo_transforms,
)
from hmsa.inference.backends import BACKENDS
from hmsa.inference.insight import Insight, look_into
from hmsa.inference.network import FusedNetwork
from hmsa.models.hierarchical import Network, decided_shares
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import color_palette, highlight, pseudo_color
from hmsa.weights.loading import weight_file

_LOADERS, _AHEAD = 2, 4  # threads, and images that they may have ready
_RECIPE = "config.yml"  # in a checkpoint
_SMALLEST = 16  # side of an image of which a network's smallest scale, where an export does not tell, leaves a pixel

_Maps = dict[float, np.ndarray]  # by scale

# Paddle's state (gradients off, the device) and a program's buffers are one for all threads.
_paddle_lock = threading.RLock()


@dataclass(frozen=True)
class _Model:
    """What a segmenter runs."""

    answer: Network  # images [N, C, H, W] -> logits or probabilities [N, K, H, W], or class numbers [N, 1, H, W]
    gives: str  # which of them: "logits", "probabilities", "classes"
    inside: Optional[Union[FusedNetwork, _Export]]  # the same, to be looked into; None where it cannot be
    transforms: Sequence[Transform]
    options: InferenceOptions
    classes: Classes
    confidence: Optional[Network] = None  # images -> [N, 1, H, W], of an export that gives it beside class numbers
    in_channels: int = 3  # C
    max_pixels: Optional[int] = None  # above which a file is refused; None is Pillow's limit
    size: tuple[Optional[int], Optional[int]] = (None, None)  # (height, width) of its input; None is any


class Segmenter:
    """Images -> `Result`s, by a trained network.

    A call takes a path, a file's content (bytes), an open file, a Pillow image or pixels (NumPy, uint8 [H, W, 3], red
    green blue; where the recipe has in_channels, uint8, uint16 or float32 [H, W, C]) and returns a `Result`; of a list,
    or of pixels [N, H, W, 3], it returns a list; of an iterator, or anything else to go through, an iterator, which has
    the next images loaded while the network runs. Images of a list
    may differ in size. They go through the network one by one, so that each answer is that of its image alone, to the
    bit.

    Any number of threads may share a segmenter, or have several: loading runs side by side, the networks by turns.

    Args:
        model: a checkpoint's folder (`best_model`, `iter_1000`, with its recipe in it), the folder of an export, or
            a recipe; then with `weights`.
        weights: what `predict.py` takes as model_path.
        engine, precision: see `predict.py`; of an export, one of `hmsa.deploy.engines.ENGINES` and a precision that it
            was written in (auto: Paddle Inference, fp32).
        scales, flip_horizontal, flip_vertical: average over these; as the recipe's `test_config` says without any.
        opts: "key=value", to set anything in the recipe.

    Raises:
        UsageError, DataError: in a sentence, what is wrong with the arguments or the files.
    """

    def __init__(
        self,
        model: Union[str, os.PathLike[str]],
        weights: Optional[Union[str, os.PathLike[str]]] = None,
        *,
        engine: str = "auto",
        precision: str = "fp32",
        scales: Optional[Sequence[float]] = None,
        flip_horizontal: Optional[bool] = None,
        flip_vertical: Optional[bool] = None,
        opts: Iterable[str] = (),
    ) -> None:
        given = {"scales": scales, "flip_horizontal": flip_horizontal, "flip_vertical": flip_vertical}
        averaging = {name: value for name, value in given.items() if value is not None}
        if scales is not None:
            averaging["scales"] = [float(scale) for scale in scales]
        if not isinstance(model, (str, os.PathLike)):
            raise UsageError(
                f"expected the folder of a checkpoint or of an export, or a recipe, found a {type(model).__name__}: "
                "give its path"
            )
        path = Path(model)

        if weights is None and (path / DEPLOY_FILE).is_file():
            if list(opts):
                raise UsageError(
                    f"{path}: expected an export, which runs as it was written, without opts, found some: leave them "
                    "out, or open the checkpoint"
                )
            self._model = _exported(path, averaging, engine, precision)
        else:
            if engine not in ("auto", *BACKENDS):
                near = suggest(str(engine), ("auto", *BACKENDS))
                raise UsageError(f"expected the name of an engine, found {shown(engine)}: {near}")
            recipe, weights = _recipe_and_weights(path, weights)
            self._model = _built(recipe, weights, engine, precision, averaging, opts)
        self._newest: Callable[[], Optional[Result]] = lambda: None

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        return self._model.classes

    @overload
    def __call__(self, image: OneImage) -> Result: ...

    @overload
    def __call__(self, image: Union[list[Any], tuple[Any, ...]]) -> list[Result]: ...

    @overload
    def __call__(self, image: Iterable[OneImage]) -> Iterator[Result]: ...

    def __call__(self, image: Any) -> Any:
        if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
            return list(self._stream(image))
        if isinstance(image, Iterable) and not is_one(image):
            return self._stream(image)
        return self._result(self._loaded(image, "the image"))

    def _stream(self, images: Iterable[Any]) -> Iterator[Result]:
        """The results in order. An error, of an image or of `images` themselves, is raised in its place."""
        waiting: deque[Future[_Loaded]] = deque()
        with ThreadPoolExecutor(_LOADERS, "segmenter") as pool:
            try:
                for loading in self._begun(images, pool):
                    waiting.append(loading)
                    if len(waiting) > _AHEAD:
                        yield self._result(waiting.popleft().result())
                while waiting:
                    yield self._result(waiting.popleft().result())
            finally:
                for loading in waiting:
                    loading.cancel()

    def _begun(self, images: Iterable[Any], pool: ThreadPoolExecutor) -> Iterator[Future[_Loaded]]:
        try:
            for number, image in enumerate(images):
                yield pool.submit(self._loaded, image, f"image {number}")
        except Exception as error:
            failed: Future[_Loaded] = Future()
            failed.set_exception(error)
            yield failed

    def _loaded(self, given: Any, name: str) -> _Loaded:
        image = pixels_of(given, name, self._model.max_pixels, self._model.in_channels)
        sample = transformed_image(image, self._model.transforms, name)
        size, expected = sample["img"].shape[1:], self._model.size
        if any(side not in (None, found) for side, found in zip(expected, size)):
            height, width = ("any" if side is None else side for side in expected)
            raise DataError(
                f"expected an image of {width}x{height} (width x height), the only size of this export, found "
                f"{size[1]}x{size[0]}: resize it, or export without input_shape"
            )
        return _Loaded(image, sample["img"], sample["trans_info"])

    def _result(self, loaded: _Loaded) -> Result:
        """The answer to an image. Its scores are kept as long as it is the newest one, to ask it for more."""
        with _paddle_lock:
            scores = self._through(self._model.answer, loaded, self._model.options)
            is_label = self._model.gives == "classes"
            labels = scores[0, 0].numpy().astype(np.uint8) if is_label else best_classes(scores)
            earlier = self._newest()
            if earlier is not None:
                earlier._scores = None
            result = Result(self, loaded.image, labels, scores)
            self._newest = weakref.ref(result)
        return result

    def _through(self, network: Network, loaded: _Loaded, options: InferenceOptions) -> paddle.Tensor:
        """A network's answer at the image's own size, averaged as `options` say: [1, K, H, W]."""
        if self._model.gives == "classes" and any(kind == "resize" for kind, _ in loaded.trans_info):
            raise UsageError(
                "expected an export whose answers can be resized, found one of class numbers: export with "
                "output_op softmax"
            )
        scores = class_scores(network, as_tensor(loaded.input[np.newaxis]), options)
        return undo_transforms(scores, loaded.trans_info, loaded.image.shape[:2])

    def _scores(self, result: Result) -> paddle.Tensor:
        """Those of a result [1, K, H, W], made anew where they are no longer kept."""
        if self._model.gives == "classes":
            raise UsageError(
                "expected a model that gives probabilities, found an export of class numbers: export with "
                "output_op softmax (for confidence alone, also with_confidence), or open the checkpoint"
            )
        scores = result._scores
        if scores is None:
            scores = self._through(self._model.answer, self._loaded(result.image, "the image"), self._model.options)
        return scores

    def _confidence(self, result: Result) -> np.ndarray:
        with _paddle_lock:
            if self._model.confidence is not None:
                loaded = self._loaded(result.image, "the image")
                return self._through(self._model.confidence, loaded, self._model.options)[0, 0].numpy()
            scores = self._scores(result)
            if self._model.gives == "probabilities":
                return scores[0].numpy().max(axis=0)
            return confidences(scores, self._model.options)

    def _probabilities(self, result: Result) -> np.ndarray:
        with _paddle_lock:
            scores = self._scores(result)
            if self._model.gives == "probabilities":
                return scores[0].numpy()
            return probabilities(scores, self._model.options)

    def _insight(self, result: Result, *, alone: bool) -> Optional[Insight]:
        network = self._model.inside
        if not isinstance(network, FusedNetwork):
            return None
        loaded = self._loaded(result.image, "the image")
        image, options = as_tensor(loaded.input[np.newaxis]), self._model.options
        size = result.image.shape[:2]
        with _paddle_lock:
            return look_into(network, image, options, trans_info=loaded.trans_info, size=size, alone=alone)

    def _shares(self, result: Result) -> Optional[tuple[_Maps, _Maps]]:
        """The attention of every scale, and the share of the answer that it decides."""
        network = self._model.inside
        if not isinstance(network, _Export):
            insight = self._insight(result, alone=False)
            return insight and (insight.attention, insight.decided)
        loaded, options = self._loaded(result.image, "the image"), replace(self._model.options, average="logits")
        with _paddle_lock, paddle.no_grad():
            maps = self._through(network.shares, loaded, options)[0].numpy()
        attention, decided = np.split(maps, 2)
        return dict(zip(network.scales, attention)), dict(zip(network.scales, decided))


@dataclass(frozen=True)
class _Loaded:
    image: np.ndarray  # uint8 [H, W, 3] RGB, or what `hmsa.datasets.bands` reads
    input: np.ndarray  # float32 [C, h, w], as the transforms leave it
    trans_info: list[Any]  # what they did to its size


class Result:
    """The answer to one image. What takes memory or time is made when it is first asked for.

    Attributes:
        labels: the number of every pixel's class, uint8 [H, W]; as `predict.py` gives it.
        image: the image that was looked at, upright, uint8 [H, W, 3] RGB, or of other channels as it was given.
        classes: their names and colours.
    """

    def __init__(
        self, segmenter: Segmenter, image: np.ndarray, labels: np.ndarray, scores: Optional[paddle.Tensor]
    ) -> None:
        self.labels = labels
        self.image = image
        self.classes = segmenter.classes
        self._segmenter = segmenter
        self._scores = scores

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of every pixel's class, float32 [H, W].

        Of the newest result it takes a moment, of an earlier one another run of the network.

        Raises:
            UsageError: the model is an export of class numbers.
        """
        return self._segmenter._confidence(self)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of every class at every pixel, float32 [K, H, W]; made as `confidence` is."""
        return self._segmenter._probabilities(self)

    @property
    def attention(self) -> Optional[dict[float, np.ndarray]]:
        """Scale -> how much of its answer was taken at every pixel, float32 [H, W] from 0 to 1; the rest came from the
        next larger scale. That of the largest scale decides nothing.

        Together with `decided` it takes another run of the network, and is averaged over flips, scales and tiles as the
        answer is. None where the model does not give it: `no_attention` says why.
        """
        return self._shares and self._shares[0]

    @property
    def decided(self) -> Optional[dict[float, np.ndarray]]:
        """Scale -> what share of the answer it decided at every pixel, float32 [H, W]; over the scales they sum to 1.

        It follows from `attention`, see `hmsa.models.hierarchical.decided_shares`.
        """
        return self._shares and self._shares[1]

    @cached_property
    def scales(self) -> Optional[dict[float, np.ndarray]]:
        """Scale -> the classes that it gives alone, uint8 [H, W]. It takes another run; None where `attention` is, and
        of an export, which holds the fused answer.
        """
        insight = self._segmenter._insight(self, alone=True)
        return insight and insight.scales

    @cached_property
    def _shares(self) -> Optional[tuple[_Maps, _Maps]]:
        return self._segmenter._shares(self)

    @property
    def no_attention(self) -> str:
        """Why `attention` is None; empty where it is not."""
        if self._segmenter._model.inside is not None:
            return ""
        return (
            "this export holds the fused answer alone: export with attention, or open the checkpoint that it was made "
            "from"
        )

    def overlay(self, opacity: float = 0.4) -> Image.Image:
        """The image with the colours of its classes over it, from 0 (the image alone) to 1 (colours alone).

        Edges of regions are a little stronger; where a class is named "background", the image is left as it is.
        """
        if not 0 <= opacity <= 1:
            raise UsageError(f"expected an opacity from 0 to 1, found {shown(opacity)}: correct it")
        image, plain = displayed(self.image), self.classes.background
        return Image.fromarray(highlight(image, self.labels, self._colors, opacity, plain=plain))

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write the labels as a PNG whose numbers are those of the classes, shown in their colours.

        Raises:
            UsageError: another format, which would change the numbers.
            DataError: it cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise UsageError(
                f"{path}: expected a name that ends in .png, which keeps the numbers of the classes: correct it; "
                "overlay().save(...) writes pictures of any format"
            )
        write_atomically(Path(path), lambda file: pseudo_color(self.labels, self._colors).save(file, "PNG"))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def _colors(self) -> list[int]:
        return color_palette((), self.classes.colors)


# --- Opening. ---


def _recipe_and_weights(
    path: Path, weights: Optional[Union[str, os.PathLike[str]]]
) -> tuple[Path, Union[str, os.PathLike[str]]]:
    """The recipe, and the weights, of what a segmenter was given."""
    is_recipe = path.suffix.lower() in (".yml", ".yaml")
    if weights is not None:
        return path / _RECIPE if path.is_dir() else path, weights
    if is_recipe:
        raise UsageError(
            f'{path}: expected weights with this recipe, found none: Segmenter("{path}", "model.pdparams"), or give '
            "the folder of a checkpoint"
        )
    if not path.exists():
        raise DataError(
            f"{path}: expected the folder of a checkpoint or of an export, found nothing of this name; correct the path"
        )

    file = weight_file(path)
    recipe = file.with_name(_RECIPE)
    if not recipe.is_file():
        raise UsageError(
            f"{path}: expected {_RECIPE} beside the weights, as train.py writes it, found none: give their recipe "
            f'first: Segmenter("recipe.yml", "{path}")'
        )
    return recipe, path


def _built(
    recipe: Path,
    weights: Union[str, os.PathLike[str]],
    engine: str,
    precision: str,
    averaging: dict[str, Any],
    opts: Iterable[str],
) -> _Model:
    chosen = [f"test_config.{name}={value}" for name, value in averaging.items()]
    config = load_config(recipe, [*opts, *chosen, *["test_config.aug_eval=true"] * bool(chosen)])
    network, _ = builder.open_network(config, os.fspath(weights), backend=engine, precision=precision)
    return _Model(
        answer=network,
        gives="logits",
        inside=network,
        transforms=fused(builder.build_transforms(builder.inference_transforms(config))),
        options=InferenceOptions.from_test_config(config.test_config),
        classes=builder.classes(config),
        in_channels=config.in_channels,
        max_pixels=config.max_image_pixels,
    )


def _exported(folder: Path, averaging: dict[str, Any], engine: str, precision: str) -> _Model:
    deployment = read_deployment(folder)
    gives = {"argmax": "classes", "softmax": "probabilities"}.get(deployment.output_op, "logits")
    if averaging and gives == "classes":
        raise UsageError(
            f"{folder}: expected an export that can be averaged over scales and flips, found one of class numbers: "
            "export with output_op none, or leave them out"
        )
    try:
        spec = InferenceSpec(aug_eval=bool(averaging), **averaging)
    except ValidationError:
        found = shown(averaging["scales"])
        raise UsageError(f"expected scales from 1/16 to 16, found {found}: correct them") from None

    export = _Export(open_export(folder, {"auto": "paddle", "inference": "paddle"}.get(engine, engine), precision))
    return _Model(
        answer=export.output(export.names[0]),
        gives=gives,
        inside=export if "attention" in export.names else None,
        confidence=export.output("confidence") if gives == "classes" and "confidence" in export.names else None,
        transforms=fused(builder.exported_transforms(deployment.transforms, where=f"{folder / DEPLOY_FILE}")),
        options=InferenceOptions.from_test_config(spec),
        classes=_classes_of(deployment),
        in_channels=deployment.side("C") or 3,
        size=(deployment.side("H"), deployment.side("W")),
    )


class _Export:
    """An export as networks, images [N, C, H, W] -> [N, K, H, W], one for each of its outputs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.names = [output.name for output in session.deployment.outputs]
        self.scales = tuple(scale for output in session.deployment.outputs for scale in output.scales)

    def output(self, name: str) -> Network:
        """A network; an output [N, H, W] has one K."""

        def answer(image: paddle.Tensor) -> paddle.Tensor:
            found = self._session(self._images(image))[name]
            return as_tensor(found[:, np.newaxis].astype(np.float32) if found.ndim == 3 else found)

        return answer

    def shares(self, image: paddle.Tensor) -> paddle.Tensor:
        """The attention of every scale in `scales`, and the share of the answer that each decides, [N, 2 S, H, W]."""
        attention = self.output("attention")(image)
        return paddle.concat([attention, decided_shares(attention)], axis=1)

    def _images(self, image: paddle.Tensor) -> np.ndarray:
        """[N, C, H, W] -> what the export takes."""
        deployment, pixels = self._session.deployment, image.numpy()
        if deployment.min_size is None and min(pixels.shape[-2:]) < _SMALLEST:  # the engine might end the process
            raise DataError(
                f"expected an image of at least {_SMALLEST} pixels each way, found one of {pixels.shape[-1]}x"
                f"{pixels.shape[-2]}: enlarge or remove it"
            )
        if deployment.input_dtype == "uint8":
            pixels = np.rint(pixels)
        return pixels if deployment.input_layout == "NCHW" else pixels.transpose(0, 2, 3, 1)


def _classes_of(deployment: Deployment) -> Classes:
    """As `deploy.yaml` has them; numbers as names where it is of another program."""
    names, colors = deployment.class_names, deployment.class_colors
    known = Classes.numbered(len(names) or 256, deployment.ignore_index)
    return replace(
        known,
        names=tuple(names) or known.names,
        colors=tuple((r, g, b) for r, g, b in colors) if len(colors) == len(known.names) else known.colors,
    )
