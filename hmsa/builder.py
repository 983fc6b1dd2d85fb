# SPDX-License-Identifier: Apache-2.0
"""From a recipe to objects: `{type: Name, **arguments}` is looked up in our tables, then in PaddleSeg's registries.

Nothing below this module sees the config. A component is imported when it is named, and PaddleSeg only with one of its
own.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Literal, NamedTuple, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle.optimizer import lr
from paddle.version import full_version as PADDLE_VERSION
from pydantic import TypeAdapter, ValidationError

from hmsa.components import IMAGENET, KINDS, AnyTransform, MixedLossSpec, imported
from hmsa.config.dialect import folded
from hmsa.config.fields import Component, arguments
from hmsa.config.schema import Config, takes_weights
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.histogram import Histogram, balanced_weights, class_histogram
from hmsa.datasets.transforms import PaddleSegTransform, Transform
from hmsa.distributed.ranks import decided_by_main, is_main, world_size
from hmsa.engine.parts import freeze, scale_rates
from hmsa.errors import DataError, HmsaError, UsageError, dotted, printable, said_of, shown, suggest
from hmsa.losses.foreign import ForeignLoss
from hmsa.losses.weighted import WeightedLoss
from hmsa.models import MscaleOCRNet
from hmsa.system.device import on_gpu
from hmsa.system.files import sha256
from hmsa.weights.loading import listed, load_weights, weight_file

if TYPE_CHECKING:
    from hmsa.engine.train import TrainOptions
    from hmsa.engine.watch import EarlyStopping
    from hmsa.inference.network import FusedNetwork

# --- The network. ---


def build_model(config: Config) -> MscaleOCRNet:
    """The network, newly initialised from `config.seed`; pretrained weights are left to who trains it.

    Its normalisation is synchronised over the ranks where there are several GPUs.
    """
    spec, where = config.model, config.where("model")
    paddle.seed(config.seed)
    options = {**arguments(spec), "backbone": _build_backbone(config), "in_channels": config.in_channels}
    del options["pretrained"]
    network = _construct(_find("model", spec.type, where), options, where)

    if world_size() > 1 and on_gpu():
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, as the network itself is no BatchNorm
    return network


def open_network(config: Config, weights: str, *, backend: str, precision: str) -> tuple[FusedNetwork, str]:
    """The network of a recipe with its weights, run by a backend (see `hmsa.inference.network`).

    Where the backend's programs are in the cache, neither the network nor its weights need to be loaded.

    Returns:
        The network, and the SHA-256 of the weight file.

    Raises:
        DataError: weights that do not fit, see `load_weights`.
    """
    from hmsa.inference import backends
    from hmsa.inference import network as network_module

    backends.choose(backend, precision)
    path = weight_file(weights)
    if not path.is_file():
        raise DataError(f"{path}: expected a weight file, found none; check the path")
    digest = sha256(path)
    spec = config.model

    def build() -> MscaleOCRNet:
        model = build_model(config)
        load_weights(model, path)
        return model

    unimportant = {"pretrained": True, "scales": True, "backbone": {"pretrained"}}
    identity = {"model": spec.model_dump(mode="json", exclude=unimportant), "weights": digest}
    identity["in_channels"] = config.in_channels
    options = {"scales": spec.scales, "align_corners": spec.align_corners, "backend": backend, "precision": precision}
    return network_module.open_network(build, identity=identity, **options), digest


def _build_backbone(config: Config) -> paddle.nn.Layer:
    """Ours share `align_corners`, `recompute` and `in_channels` with the network; PaddleSeg's take what the YAML says,
    and `in_channels` where it is not 3."""
    spec, where = config.model.backbone, config.where("model.backbone")
    found = _find("backbone", spec.type, where)
    options = arguments(spec)
    del options["pretrained"]
    if found.ours:
        options = {"align_corners": config.model.align_corners, "recompute": config.model.recompute, **options}
    if config.in_channels != 3:
        options["in_channels"] = config.in_channels
    backbone = _checked_channels(config, lambda: _construct(found, options, where))

    channels = getattr(backbone, "feat_channels", ())
    if any(not -len(channels) <= index < len(channels) for index in config.model.backbone_indices):
        raise UsageError(
            f"{config.source('model.backbone_indices')}: expected model.backbone_indices to be below {len(channels)}, "
            f"the number of feature maps of {found.name}, found {config.model.backbone_indices}: correct them"
        )
    return backbone


def _checked_channels(config: Config, make: Callable[[], paddle.nn.Layer]) -> paddle.nn.Layer:
    """The backbone, unless it is one of PaddleSeg's that does not know `in_channels`, or passes over it."""
    try:
        backbone = make()
        kernels = [p.shape for p in backbone.parameters() if len(p.shape) == 4]  # [out, in, height, width]
        if config.in_channels == 3 or not kernels or kernels[0][1] == config.in_channels:
            return backbone
    except UsageError as error:
        if config.in_channels == 3 or "in_channels" not in str(error):
            raise
    raise UsageError(
        f"{config.source('in_channels')}: expected in_channels to be 3, which is all that {config.model.backbone.type} "
        f"takes, found {config.in_channels}: choose a backbone of this project, such as HRNet_W48_NV, or another of "
        "PaddleSeg's"
    )


# --- Data. ---


def build_transforms(specs: Sequence[Component], *, where: str = "transforms") -> list[Transform]:
    """Callables (sample, rng) -> sample, in order; `where` names the list in messages."""
    transforms = []
    for index, spec in enumerate(specs):
        found = _find("transform", spec.type, f"{where}.{index}")
        transform = _construct(found, arguments(spec), f"{where}.{index}")
        transforms.append(transform if found.ours else PaddleSegTransform(transform))
    return transforms


def exported_transforms(entries: Sequence[Mapping[str, Any]], *, where: str) -> list[Transform]:
    """What prepares an image for an export, as its description lists it. DataError where that is wrong."""
    try:
        specs = [TypeAdapter(AnyTransform).validate_python(entry) for entry in entries]
    except ValidationError as error:
        raise DataError(f"{where}: expected transforms, but: {said_of(error)}; export again") from None
    return build_transforms(specs, where=where)


def inference_transforms(config: Config) -> list[Any]:
    """What prepares an image for the network: `val_dataset.transforms`, or ImageNet's `Normalize` without them.

    Raises:
        UsageError: neither can be, as the images have other than three channels.
    """
    if not config.val_dataset and config.in_channels != 3:
        raise UsageError(
            f"{config.source('in_channels')}: expected val_dataset, whose transforms prepare images of "
            f"{config.in_channels} channels, found none: write it, with a Normalize of their mean and std"
        )
    return list(config.val_dataset.transforms) if config.val_dataset else [IMAGENET]


def classes(config: Config, dataset: Optional[Component] = None) -> Classes:
    """What the numbers in label maps stand for: as the recipe's `classes` say, else as its data set knows.

    Args:
        dataset: the section that names the data set; without it, that of evaluation, else that of training.
    """
    spec = dataset or config.val_dataset or config.train_dataset
    numbered = Classes.numbered(config.model.num_classes, getattr(spec, "ignore_index", 255))
    _, place = KINDS["dataset"].get(spec.type if spec else "", (None, ""))
    known = getattr(imported(place), "classes", numbered) if place else numbered
    if config.classes is not None:
        known = replace(
            known,
            names=tuple(given.name for given in config.classes),
            colors=tuple(tuple(given.color or color) for given, color in zip(config.classes, known.colors)),
        )
    given = [spec.values for spec in config.classes or () if spec.values]
    if not given and config.ignore is None:
        return known

    values = [[_plain(value) for value in of_class] for of_class in given or ([k] for k in range(len(known)))]
    first = [of_class[0] for of_class in values]
    return replace(
        known,
        values=tuple(map(tuple, values)),
        ignored=tuple(map(_plain, config.ignore.values)) if config.ignore else (),
        raw_values=tuple(first) if all(isinstance(value, int) and value < 256 for value in first) else None,
    )


def _plain(value: int | list[int]) -> Any:
    """A value of masks: a number, or a colour as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def build_dataset(
    config: Config, split: Literal["train", "val"], *, missing_files: bool = False
) -> SegmentationDataset:
    """`train_dataset` (shuffled, labels transformed along) or `val_dataset` (in order, labels as they are).

    Args:
        missing_files: whether a list may name files that are not there, for who tells of them himself.
    """
    section = f"{split}_dataset"
    (spec,), where = config.require(section), config.where(section)
    found = _find("dataset", spec.type, where)
    training = split == "train"
    skips = missing_files or (training and config.on_bad_sample == "skip")

    options = arguments(spec)
    if options.get("num_classes", 0) is None:
        options["num_classes"] = config.model.num_classes
    common = {
        "transforms": build_transforms(spec.transforms, where=config.where(f"{section}.transforms")),
        "seed": config.seed,
        # An evaluation that leaves images out would be no score.
        "bad_sample_limit": config.bad_sample_limit if skips else None,
        "max_image_pixels": config.max_image_pixels,
        "in_channels": config.in_channels,
        "classes": classes(config, spec),
    }
    if found.ours:
        told = {"num_classes", "ignore_index"}  # by `classes`
        dataset = _construct(found, {**{key: options[key] for key in options.keys() - told}, **common}, where)
    else:
        theirs = _construct(found, {**options, "transforms": []}, where)
        if theirs.num_classes != config.model.num_classes:
            raise UsageError(
                f"{config.source('model.num_classes')}: expected model.num_classes to be the {theirs.num_classes} "
                f"classes of {section}, found {config.model.num_classes}: set model.num_classes to {theirs.num_classes}"
            )
        dataset = SegmentationDataset.from_paddleseg(theirs, training=training, **common)

    if any(label is None for _, label in dataset.pairs):
        raise UsageError(
            f"{where}: expected images with labels, found some without (mode {getattr(spec, 'mode', '')}): choose a "
            "mode, or a list, with labels"
        )
    return dataset


# --- The loss. ---


def class_weights(
    config: Config,
    dataset: SegmentationDataset,
    kept: Optional[list[float]] = None,
    counted: Optional[Histogram] = None,
) -> ClassWeights:
    """The numbers a class that all losses take: those of the recipe, or with `auto` those that follow from the labels
    of `dataset`, which the main process counts. All processes must call this.

    Args:
        kept: what a run that goes on has counted before.
        counted: what all processes know of the labels already.
    """
    given = config.class_weights
    if given is None or isinstance(given, list):
        return ClassWeights(given, "as the recipe says")
    if kept and len(kept) == config.model.num_classes:
        return ClassWeights(kept, "auto, as counted when the run began")
    found = counted or decided_by_main(lambda: class_histogram(dataset, progress=True))
    absent = [dataset.classes.names[index] for index in np.flatnonzero(found.pixels == 0)]
    part = f"{found.labels} of {found.of}" if found.labels < found.of else f"all {found.of}"
    without = f"; in none of them: {listed(absent)}" if absent else ""
    return ClassWeights(balanced_weights(found.pixels), f"auto, from {part} labels{without}")


class ClassWeights(NamedTuple):
    """A number a class, None for 1 each, and where they are from."""

    values: Optional[list[float]]
    source: str

    def line(self, names: Sequence[str]) -> str:
        """For a person: the smallest and the largest first, where there are many."""
        assert self.values is not None
        pairs = sorted(zip(self.values, names))
        shown = pairs if len(pairs) <= 12 else [*pairs[:4], *pairs[-4:]]
        some = ", lowest and highest" if len(shown) < len(pairs) else ""
        return f"class weights ({self.source}){some}: " + ", ".join(f"{name} {w:.3g}" for w, name in shown)


def build_loss(config: Config, weights: Optional[list[float]] = None) -> WeightedLoss:
    """(outputs by name, labels) -> (total, every term by name): each loss of `loss.types` on each output.

    A loss of PaddleSeg's that cannot be trained with is a UsageError.

    Args:
        weights: of the classes, see `class_weights`; for the losses that take them.
    """
    (spec,), where = config.require("loss"), config.where("loss.types")
    terms = {part.type: _build_loss(part, config, f"{where}.{index}", weights) for index, part in enumerate(spec.types)}
    return WeightedLoss(terms=terms, weights=spec.coef)


def _build_loss(spec: Any, config: Config, where: str, weights: Optional[list[float]]) -> Callable[..., paddle.Tensor]:
    """One loss; those of PaddleSeg are tried out."""
    found = _find("loss", spec.type, where)
    if isinstance(spec, MixedLossSpec):
        parts = [
            _build_loss(part, config, f"{where}.losses.{index}", weights) for index, part in enumerate(spec.losses)
        ]
        return _construct(found, {**arguments(spec), "losses": parts}, where)
    options = arguments(spec)
    if weights and takes_weights(spec):
        options["weight"] = weights
    loss = _construct(found, options, where)
    if found.ours:
        return loss

    foreign = ForeignLoss(loss, ignore_index=getattr(config.train_dataset, "ignore_index", 255))
    try:
        foreign.try_out(config.model.num_classes)
    except Exception as error:  # Many want other inputs than logits and labels, or another version of Paddle.
        raise UsageError(
            f"{where}: expected a loss on logits and labels that Paddle {PADDLE_VERSION} can train with, found "
            f"{spec.type}, which fails in a trial ({_reason(error)}): use CrossEntropyLoss, OhemCrossEntropyLoss, "
            "BootstrappedCrossEntropyLoss, DiceLoss or another one"
        ) from error
    return foreign


# --- Schedule and optimizer. ---


def build_lr_scheduler(config: Config) -> lr.LRScheduler:
    """The rate of iteration i after i calls of `step()`: a linear warm-up, then the decay over the iterations left."""
    (spec,), where = config.require("lr_scheduler"), config.where("lr_scheduler")
    found = _find("scheduler", spec.type, where)
    options = arguments(spec)
    warmup, start = options.pop("warmup_iters"), options.pop("warmup_start_lr")
    if found.ours:
        options["decay_steps"] = config.iters - warmup
    scheduler = _construct(found, options, where)
    return lr.LinearWarmup(scheduler, warmup, start, spec.learning_rate) if warmup else scheduler


def build_optimizer(config: Config, scheduler: lr.LRScheduler, model: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """The optimizer over all parameters of `model`, in which what the recipe leaves as it is has been frozen."""
    with _told_where(config, "freeze"):
        freeze(model, config.freeze or ())
    optimizer = _optimizer_of_all(config, scheduler, model)
    with _told_where(config, "lr_mult"):
        idle = scale_rates(model, config.lr_mult or {})
        if idle:
            raise UsageError(
                f"expected parts that are trained, found {idle[0]}, which is in freeze: remove it from one"
            )
    return optimizer


@contextlib.contextmanager
def _told_where(config: Config, key: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{config.where(key)}: {error}") from error


def _optimizer_of_all(config: Config, scheduler: lr.LRScheduler, model: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    (spec,), where = config.require("optimizer"), config.where("optimizer")
    _look_for_idle_layers(config, getattr(model, "backbone", model))

    found = _find("optimizer", spec.type, where)
    options = arguments(spec)
    if found.ours or (inspect.isclass(found.make) and issubclass(found.make, paddle.optimizer.Optimizer)):
        ours = {"learning_rate": scheduler, "parameters": model.parameters()}
        twice = sorted(set(ours) & set(options))
        if twice:
            raise UsageError(f"{where}: expected {twice[0]} to be left to lr_scheduler and model, found it: remove it")
        return _construct(found, {**options, **ours}, where)
    prepared = _construct(found, options, where)  # PaddleSeg's are made in two steps.
    return _construct(found._replace(make=prepared), {"model": model, "lr": scheduler}, where)


def _look_for_idle_layers(config: Config, backbone: paddle.nn.Layer) -> None:
    """A warning if a backbone of PaddleSeg's has layers behind the chosen feature maps, which would stay random; on
    several GPUs, where training would wait for their gradients, a UsageError."""
    spec = config.model
    ours = _find("backbone", spec.backbone.type, config.where("model.backbone")).ours
    if ours or all(parameter.stop_gradient for parameter in backbone.parameters()):
        return
    backbone.eval()  # for a trial that leaves running statistics alone
    features = backbone(paddle.ones([1, config.in_channels, 128, 128]))
    paddle.add_n([features[index].sum() for index in spec.backbone_indices]).backward()
    parameters = [(name, p) for name, p in backbone.named_parameters() if not p.stop_gradient]
    idle = [name for name, parameter in parameters if parameter.grad is None]
    for _, parameter in parameters:
        parameter.clear_gradient(set_to_zero=False)
    backbone.train()

    if idle:
        problem = (
            f"{config.source('model.backbone_indices')}: expected model.backbone_indices to reach all of "
            f"{spec.backbone.type}, found {spec.backbone_indices}, which leave {len(idle)} of its {len(parameters)} "
            f"tensors untrained ({idle[0]}, ...): choose {len(features) - 1}, its last feature map, or others with it"
        )
        if world_size() > 1 and on_gpu():
            raise UsageError(problem)
        if is_main():
            print(printable(f"warning: {problem}"), file=sys.stderr)


def build_early_stopping(config: Config) -> Optional[EarlyStopping]:
    """What ends a training before its last iteration, if the recipe says so."""
    from hmsa.engine.watch import EarlyStopping
    from hmsa.metrics import build_metrics

    spec = config.early_stopping
    if spec is None:
        return None
    with _told_where(config, "early_stopping.metric"):
        metrics = build_metrics(config.model.num_classes, 255, lambda logits, labels: logits.sum())
        return EarlyStopping.on(spec.metric, spec.patience, metrics)


def train_options(config: Config, **options: Any) -> TrainOptions:
    """What the recipe and `options` (the rest of `TrainOptions`) say of a run."""
    from hmsa.engine.train import TrainOptions

    return TrainOptions(
        iters=config.iters,
        batch_size=config.batch_size,
        gradient_accumulation=config.gradient_accumulation,
        precision=config.precision,
        deterministic=config.deterministic,
        seed=config.seed,
        nonfinite_limit=config.nonfinite_limit,
        log_images=config.log_images,
        ema_decay=config.ema.decay if config.ema else None,
        config=config.dump(),
        **options,
    )


# --- Any component. ---


class _Found(NamedTuple):
    """A component: its name as it is spelled, what makes it, and whether it is in our tables."""

    name: str
    make: Callable[..., Any]
    ours: bool = False


def _find(kind: str, name: str, where: str) -> _Found:
    """The component of that name, in any spelling: ours, else PaddleSeg's or Paddle's, which are imported only then."""
    ours = KINDS[kind]
    known = _spelled(name, ours)
    if known:
        return _Found(known, imported(ours[known][1]), ours=True)

    theirs = _foreign(kind)
    known = _spelled(name, theirs)
    if known:
        return _Found(known, theirs[known])
    raise UsageError(
        f"{where}: expected type to name a {kind} of this project or of PaddleSeg, found {shown(name)}: "
        f"{suggest(name, (*ours, *theirs))}"
    )


def _spelled(name: str, names: Iterable[str]) -> Optional[str]:
    """A name as these have it: itself, or the only one that is spelled alike."""
    alike = [known for known in names if folded(known) == folded(name)]
    if name in alike:
        return name
    return alike[0] if len(alike) == 1 else None


def _foreign(kind: str) -> dict[str, Callable[..., Any]]:
    """PaddleSeg's registry of a kind of component, and Paddle's own classes where the kind is theirs."""
    if kind == "scheduler":
        return _subclasses(lr, lr.LRScheduler)
    import paddleseg  # noqa: F401 (fills the registries)
    from paddleseg.cvlibs import manager

    if kind == "optimizer":
        return {**_subclasses(paddle.optimizer, paddle.optimizer.Optimizer), **manager.OPTIMIZERS.components_dict}
    registries = {
        "backbone": manager.BACKBONES,
        "dataset": manager.DATASETS,
        "transform": manager.TRANSFORMS,
        "loss": manager.LOSSES,
    }
    return registries[kind].components_dict


def _subclasses(module: Any, base: type) -> dict[str, Callable[..., Any]]:
    """Those of Paddle's whose `step()` wants neither a score nor the loss as a function."""
    members = {name: member for name, member in vars(module).items() if name not in ("ReduceOnPlateau", "LBFGS")}
    return {name: m for name, m in members.items() if inspect.isclass(m) and issubclass(m, base) and m is not base}


def _construct(found: _Found, options: dict[str, Any], where: str) -> Any:
    """Make the component; arguments that it does not have, or that it refuses, are a UsageError."""
    name, parameters = found.name, inspect.signature(found.make).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        problems = [
            f"{where}: expected only arguments of {name}, found {dotted([key])}: {suggest(key, known)}"
            for key in options
            if key not in known
        ]
        if problems:
            raise UsageError(*problems)
    try:
        return found.make(**options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except HmsaError:
        raise
    except Exception as error:  # PaddleSeg's components refuse arguments with whatever comes first.
        raise UsageError(f"{where}: expected arguments that {name} accepts, but it says: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an error says, on one line. Paddle's own are pages long, the reason last."""
    reason = " ".join(str(error).split("Error Message Summary:")[-1].split()).lstrip("- ") or type(error).__name__
    return reason if len(reason) <= 400 else f"{reason[:400]}..."
