# SPDX-License-Identifier: Apache-2.0
"""From a recipe to objects: `{type: Name, **arguments}` is looked up in our tables, then in PaddleSeg's registries.

Nothing below this module sees the config. PaddleSeg is imported only when one of its components is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Callable, Literal

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle.optimizer import lr
from paddle.version import full_version as PADDLE_VERSION

from hmsa.config.dialect import folded
from hmsa.config.schema import Config, MixedLossSpec, NormalizeSpec, Section, arguments
from hmsa.datasets.cityscapes import CityscapesAutolabeling
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.lists import ListDataset
from hmsa.datasets.transforms import (
    Normalize,
    Padding,
    PaddleSegTransform,
    RandomDistort,
    RandomHorizontalFlip,
    RandomPaddingCrop,
    Resize,
    ResizeStepScaling,
    Transform,
)
from hmsa.distributed.ranks import world_size
from hmsa.errors import DataError, HmsaError, UsageError, dotted, shown, suggest
from hmsa.losses import (
    BootstrappedCrossEntropyLoss,
    CrossEntropyLoss,
    DiceLoss,
    ForeignLoss,
    MixedLoss,
    OhemCrossEntropyLoss,
    WeightedLoss,
)
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.models.hierarchical import Network
from hmsa.optim import adamw, sgd
from hmsa.system.files import sha256
from hmsa.weights.loading import load_weights, weight_file

if TYPE_CHECKING:
    from hmsa.engine.train import TrainOptions

Table = dict[str, Callable[..., Any]]


MODELS: Table = {"MscaleOCRNet": MscaleOCRNet}
DATASETS: Table = {"CityscapesAutolabeling": CityscapesAutolabeling, "Dataset": ListDataset}
TRANSFORMS: Table = {
    "ResizeStepScaling": ResizeStepScaling,
    "RandomPaddingCrop": RandomPaddingCrop,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandomDistort": RandomDistort,
    "Normalize": Normalize,
    "Padding": Padding,
    "Resize": Resize,
}
LOSSES: Table = {
    "DiceLoss": DiceLoss,
    "BootstrappedCrossEntropyLoss": BootstrappedCrossEntropyLoss,
    "CrossEntropyLoss": CrossEntropyLoss,
    "OhemCrossEntropyLoss": OhemCrossEntropyLoss,
    "MixedLoss": MixedLoss,
}
OPTIMIZERS: Table = {"SGD": sgd, "AdamW": adamw}
SCHEDULERS: Table = {"PolynomialDecay": lr.PolynomialDecay}


def build_model(config: Config) -> MscaleOCRNet:
    """The network, newly initialised from `config.seed`; pretrained weights are left to who trains it.

    Its normalisation is synchronised over the ranks where there are several GPUs.
    """
    spec = config.model
    paddle.seed(config.seed)
    backbone = _build_backbone(config)
    options = arguments(spec)
    del options["backbone"], options["pretrained"]
    network = _construct(MODELS[spec.type], spec.type, {"backbone": backbone, **options}, config.where("model"))
    if world_size() > 1 and paddle.device.get_device().startswith("gpu"):
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, as the network itself is no BatchNorm
    return network


def open_network(config: Config, weights: str, *, engine: str, precision: str) -> tuple[Network, str]:
    """The network of a recipe with its weights, run by an engine (see `hmsa.inference.network`).

    Where the engine's programs are in its cache, neither the network nor its weights need to be loaded.

    Returns:
        The network, and the SHA-256 of the weight file.

    Raises:
        DataError: weights that do not fit, see `load_weights`.
    """
    from hmsa.inference import backends
    from hmsa.inference import network as network_module

    backends.choose_engine(engine, precision)
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
    options = {"scales": spec.scales, "align_corners": spec.align_corners, "engine": engine, "precision": precision}
    return network_module.open_network(build, identity=identity, **options), digest


def _build_backbone(config: Config) -> paddle.nn.Layer:
    """Ours share `align_corners` and `recompute` with the network; PaddleSeg's take what the YAML says."""
    spec, where = config.model.backbone, config.where("model.backbone")
    name = _name("backbone", spec.type, BACKBONES, where)
    options = arguments(spec)
    del options["pretrained"]
    if name in BACKBONES:
        options = {"align_corners": config.model.align_corners, "recompute": config.model.recompute, **options}
    backbone = _build("backbone", {"type": name, **options}, BACKBONES, where)
    channels = getattr(backbone, "feat_channels", None)
    if channels is None:
        raise UsageError(
            f"{where}: expected a backbone with feat_channels, found {spec.type} without: choose another backbone"
        )
    if any(not -len(channels) <= index < len(channels) for index in config.model.backbone_indices):
        raise UsageError(
            f"{config.source('model.backbone_indices')}: expected model.backbone_indices to be below {len(channels)}, "
            f"the number of feature maps of {name}, found {config.model.backbone_indices}: correct them"
        )
    return backbone


def build_transforms(specs: Sequence[Section], *, where: str = "transforms") -> list[Transform]:
    """Callables (sample, rng) -> sample, in order; `where` names the list in messages."""
    return [_build_transform(spec, f"{where}.{index}") for index, spec in enumerate(specs)]


def inference_transforms(config: Config) -> list[Any]:
    """What prepares an image for the network: `val_dataset.transforms`, or ImageNet's `Normalize` without them."""
    if config.val_dataset is not None:
        return list(config.val_dataset.transforms)
    return [NormalizeSpec(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]


def _build_transform(spec: Any, where: str) -> Transform:
    name = _name("transform", spec.type, TRANSFORMS, where)
    transform = _build("transform", {"type": name, **arguments(spec)}, TRANSFORMS, where)
    return transform if name in TRANSFORMS else PaddleSegTransform(transform)


def build_dataset(config: Config, split: Literal["train", "val"]) -> SegmentationDataset:
    """`train_dataset` (shuffled, labels transformed along) or `val_dataset` (in order, labels as they are)."""
    section = f"{split}_dataset"
    config.require(section)
    spec = getattr(config, section)
    where = config.where(section)
    transforms = build_transforms(spec.transforms, where=config.where(f"{section}.transforms"))
    training = split == "train"
    options = {"type": spec.type, **arguments(spec)}
    del options["transforms"]
    for key, default in (("mode", split), ("num_classes", config.model.num_classes)):
        if key in options and options[key] is None:
            options[key] = default
    # An evaluation that leaves images out would be no score.
    limit = config.bad_sample_limit if training and config.on_bad_sample == "skip" else None
    common = {"transforms": transforms, "seed": config.seed, "bad_sample_limit": limit}
    common["max_image_pixels"] = config.max_image_pixels
    if spec.type in DATASETS:
        dataset = _build("dataset", {**options, **common}, DATASETS, where)
    else:
        theirs = _build("dataset", {**options, "transforms": []}, DATASETS, where)
        dataset = SegmentationDataset.from_paddleseg(theirs, shuffle=training, label_transforms=training, **common)
    if dataset.num_classes != config.model.num_classes:
        raise UsageError(
            f"{config.source('model.num_classes')}: expected model.num_classes to be the {dataset.num_classes} classes "
            f"of {section}, found {config.model.num_classes}: set model.num_classes to {dataset.num_classes}"
        )
    if any(label is None for _, label in dataset.pairs):
        raise UsageError(
            f"{where}: expected images with labels, found some without (mode {getattr(spec, 'mode', '')}): choose a "
            "mode, or a list, with labels"
        )
    return dataset


def build_loss(config: Config) -> WeightedLoss:
    """(outputs by name, labels) -> (total, every term by name): each loss of `loss.types` on each output.

    A loss of PaddleSeg's that cannot be trained with is a UsageError.
    """
    config.require("loss")
    assert config.loss is not None
    terms = {
        spec.type: _build_loss(spec, config, f"{config.path}: loss.types.{index}")
        for index, spec in enumerate(config.loss.types)
    }
    return WeightedLoss(terms=terms, weights=config.loss.coef)


def _build_loss(spec: Any, config: Config, where: str) -> Callable[..., paddle.Tensor]:
    """One loss; those of PaddleSeg are tried out."""
    if isinstance(spec, MixedLossSpec):
        parts = [_build_loss(part, config, f"{where}.losses.{index}") for index, part in enumerate(spec.losses)]
        return MixedLoss(losses=parts, coef=spec.coef)
    loss = _build("loss", {"type": spec.type, **arguments(spec)}, LOSSES, where)
    if spec.type in LOSSES:
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


def build_lr_scheduler(config: Config) -> lr.LRScheduler:
    """The rate of iteration i after i calls of `step()`: a linear warm-up, then the decay over the iterations left."""
    config.require("lr_scheduler")
    assert config.lr_scheduler is not None
    spec = config.lr_scheduler
    options = {"type": spec.type, **arguments(spec)}
    warmup, start = options.pop("warmup_iters"), options.pop("warmup_start_lr")
    if spec.type == "PolynomialDecay":
        options["decay_steps"] = config.iters - warmup
    scheduler = _build("scheduler", options, SCHEDULERS, config.where("lr_scheduler"))
    return lr.LinearWarmup(scheduler, warmup, start, spec.learning_rate) if warmup else scheduler


def build_optimizer(config: Config, scheduler: lr.LRScheduler, model: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """The optimizer over all parameters of `model`."""
    config.require("optimizer")
    assert config.optimizer is not None
    spec, where = config.optimizer, config.where("optimizer")
    component = _find("optimizer", spec.type, OPTIMIZERS, where)
    options = arguments(spec)
    if spec.type in OPTIMIZERS or (inspect.isclass(component) and issubclass(component, paddle.optimizer.Optimizer)):
        ours = {"learning_rate": scheduler, "parameters": model.parameters()}
        twice = sorted(set(ours) & set(options))
        if twice:
            raise UsageError(f"{where}: expected {twice[0]} to be left to lr_scheduler and model, found it: remove it")
        return _construct(component, spec.type, {**options, **ours}, where)
    prepared = _construct(component, spec.type, options, where)  # PaddleSeg's are made in two steps.
    return _construct(prepared, spec.type, {"model": model, "lr": scheduler}, where)


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
        ema_decay=config.ema.decay if config.ema else None,
        config=config.dump(),
        **options,
    )


def _build(kind: str, spec: dict[str, Any], ours: Table, where: str) -> Any:
    """The object that `{type: Name, **arguments}` describes; arguments of that form are built first."""
    options = dict(spec)
    name = options.pop("type")
    component = _find(kind, name, ours, where)
    for key, value in options.items():
        if _is_component(value):
            options[key] = _build(kind, value, ours, f"{where}.{key}")
        elif isinstance(value, list) and value and all(map(_is_component, value)):
            options[key] = [_build(kind, part, ours, f"{where}.{key}.{i}") for i, part in enumerate(value)]
    return _construct(component, name, options, where)


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _find(kind: str, name: str, ours: Table, where: str) -> Callable[..., Any]:
    """The component of that name: ours, else PaddleSeg's or Paddle's."""
    name = _name(kind, name, ours, where)
    return ours[name] if name in ours else _foreign(kind)[name]


def _name(kind: str, name: str, ours: Table, where: str) -> str:
    """A component's name as it is spelled in our table, else in PaddleSeg's or Paddle's."""
    tables = []
    for table in (lambda: ours, lambda: _foreign(kind)):  # the second is opened only if it must be
        tables.append(table())
        alike = [known for known in tables[-1] if folded(known) == folded(name)]
        if name in alike or len(alike) == 1:
            return name if name in alike else alike[0]
    raise UsageError(
        f"{where}: expected type to name a {kind} of this project or of PaddleSeg, found {shown(name)}: "
        f"{suggest(name, chain(*tables))}"
    )


def _foreign(kind: str) -> Table:
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


def _subclasses(module: Any, base: type) -> Table:
    return {
        name: member
        for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, base) and member is not base and _steps_by_itself(member)
    }


def _steps_by_itself(component: Any) -> bool:
    """Whether `step()` wants nothing. Others need a score (ReduceOnPlateau), or the loss as a function (LBFGS)."""
    _, *parameters = inspect.signature(component.step).parameters.values()
    return all(p.default is not p.empty for p in parameters)


def _construct(component: Callable[..., Any], name: str, options: dict[str, Any], where: str) -> Any:
    """Call the component with its arguments; what does not fit its signature, or what it refuses, is a UsageError."""
    parameters = inspect.signature(component).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    problems = [
        f"{where}: expected {p.name} to be given, which {name} needs, found nothing: add it"
        for p in parameters
        if p.name in known and p.default is p.empty and p.name not in options
    ]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        problems += [
            f"{where}: expected only arguments of {name}, found {dotted([key])}: {suggest(key, known)}"
            for key in options
            if key not in known
        ]
    if problems:
        raise UsageError(*problems)
    try:
        return component(**options)
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
