# SPDX-License-Identifier: Apache-2.0
"""From a recipe to objects: `{type: Name, **arguments}` is looked up in our tables, then in PaddleSeg's registries.

Nothing below this module sees the config. PaddleSeg is imported only when one of its components is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Callable, Literal, Optional

import hmsa.prepared  # noqa: F401

import paddle
from paddle.optimizer import lr

from hmsa.config import Config, NormalizeSpec, Section, arguments, dotted, shown, suggest
from hmsa.datasets.cityscapes import CityscapesAutolabeling
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.distributed import world_size
from hmsa.engine.inference import Network
from hmsa.errors import DataError, HmsaError, UsageError
from hmsa.losses import BootstrappedCrossEntropyLoss, DiceLoss, WeightedLoss
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.transforms import (
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
from hmsa.weight_files import sha256
from hmsa.weights import load_weights, weight_file

Table = dict[str, Callable[..., Any]]


def sgd(
    *,
    learning_rate: lr.LRScheduler,
    parameters: Sequence[paddle.Tensor],
    momentum: float,
    weight_decay: float,
    clip_grad_norm: Optional[float],
) -> paddle.optimizer.Optimizer:
    """Gradient descent with (heavy-ball) momentum; the decay is added to the gradient of every parameter."""
    options = _common_options(learning_rate, parameters, weight_decay or None, clip_grad_norm)
    if momentum > 0:
        return paddle.optimizer.Momentum(momentum=momentum, **options)
    return paddle.optimizer.SGD(**options)


def adamw(
    *,
    learning_rate: lr.LRScheduler,
    parameters: Sequence[paddle.Tensor],
    beta1: float,
    beta2: float,
    weight_decay: float,
    clip_grad_norm: Optional[float],
) -> paddle.optimizer.Optimizer:
    """Adam with decoupled decay, of every parameter."""
    options = _common_options(learning_rate, parameters, weight_decay, clip_grad_norm)
    return paddle.optimizer.AdamW(beta1=beta1, beta2=beta2, **options)


def _common_options(
    learning_rate: Any, parameters: Any, weight_decay: Optional[float], clip_norm: Optional[float]
) -> Any:
    return {
        "learning_rate": learning_rate,
        "parameters": parameters,
        "weight_decay": weight_decay,
        "grad_clip": paddle.nn.ClipGradByGlobalNorm(clip_norm) if clip_norm else None,
    }


MODELS: Table = {"MscaleOCRNet": MscaleOCRNet}
DATASETS: Table = {"CityscapesAutolabeling": CityscapesAutolabeling}
TRANSFORMS: Table = {
    "ResizeStepScaling": ResizeStepScaling,
    "RandomPaddingCrop": RandomPaddingCrop,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandomDistort": RandomDistort,
    "Normalize": Normalize,
    "Padding": Padding,
    "Resize": Resize,
}
LOSSES: Table = {"DiceLoss": DiceLoss, "BootstrappedCrossEntropyLoss": BootstrappedCrossEntropyLoss}
OPTIMIZERS: Table = {"SGD": sgd, "AdamW": adamw}
SCHEDULERS: Table = {"PolynomialDecay": lr.PolynomialDecay}


def build_model(config: Config) -> MscaleOCRNet:
    """The network, newly initialised from `config.seed`; `model.pretrained` is left to who trains it.

    Its normalisation is synchronised over the ranks where there are several GPUs.
    """
    spec = config.model
    paddle.seed(config.seed)
    backbone = _build_backbone(config)
    options = arguments(spec)
    del options["backbone"], options["pretrained"]
    network = _construct(MODELS[spec.type], spec.type, {"backbone": backbone, **options}, f"{config.path}: model")
    if world_size() > 1 and paddle.device.get_device().startswith("gpu"):
        paddle.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, as the network itself is no BatchNorm
    return network


def open_network(config: Config, weights: str, *, engine: str, precision: str) -> tuple[Network, str]:
    """The network of a recipe with its weights, run by an engine (see `hmsa.deploy.engines`).

    Where the engine's programs are in its cache, neither the network nor its weights need to be loaded.

    Returns:
        The network, and the SHA-256 of the weight file.

    Raises:
        DataError: weights that do not fit, see `load_weights`.
    """
    from hmsa.deploy import engines

    engines.choose_engine(engine, precision)
    path = weight_file(weights)
    if not path.is_file():
        raise DataError(f"{path}: expected a weight file, found none; check the path")
    digest = sha256(path)
    spec = config.model

    def build() -> MscaleOCRNet:
        model = build_model(config)
        load_weights(model, path)
        return model

    identity = {"model": spec.model_dump(mode="json", exclude={"pretrained", "scales"}), "weights": digest}
    options = {"scales": spec.scales, "align_corners": spec.align_corners, "engine": engine, "precision": precision}
    return engines.open_network(build, identity=identity, **options), digest


def _build_backbone(config: Config) -> paddle.nn.Layer:
    """Ours share `align_corners` and `recompute` with the network; PaddleSeg's take what the YAML says."""
    spec, where = config.model.backbone, f"{config.path}: model.backbone"
    options = arguments(spec)
    if spec.type in BACKBONES:
        options = {"align_corners": config.model.align_corners, "recompute": config.model.recompute, **options}
    backbone = _build("backbone", {"type": spec.type, **options}, BACKBONES, where)
    channels = getattr(backbone, "feat_channels", None)
    if channels is None:
        raise UsageError(
            f"{where}: expected a backbone with feat_channels, found {spec.type} without: choose another backbone"
        )
    if any(not -len(channels) <= index < len(channels) for index in config.model.backbone_indices):
        raise UsageError(
            f"{config.path}: expected model.backbone_indices to be below {len(channels)}, the number of feature maps "
            f"of {spec.type}, found {config.model.backbone_indices}: correct them"
        )
    return backbone


def build_transforms(specs: Sequence[Section], *, where: str = "transforms") -> list[Transform]:
    """Callables (sample, rng) -> sample, in order; `where` names the list in messages."""
    return [_build_transform(spec, f"{where}.{index}") for index, spec in enumerate(specs)]


def inference_transforms(config: Config) -> list[Any]:
    """What prepares a picture for the network: `val_dataset.transforms`, or ImageNet's `Normalize` without them."""
    if config.val_dataset is not None:
        return list(config.val_dataset.transforms)
    return [NormalizeSpec(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]


def _build_transform(spec: Any, where: str) -> Transform:
    transform = _build("transform", {"type": spec.type, **arguments(spec)}, TRANSFORMS, where)
    return transform if spec.type in TRANSFORMS else PaddleSegTransform(transform)


def build_dataset(config: Config, split: Literal["train", "val"]) -> SegmentationDataset:
    """`train_dataset` (shuffled, labels transformed along) or `val_dataset` (in order, labels as they are)."""
    section = f"{split}_dataset"
    config.require(section)
    spec = getattr(config, section)
    where = f"{config.path}: {section}"
    transforms = build_transforms(spec.transforms, where=f"{where}.transforms")
    training = split == "train"
    options = {"type": spec.type, **arguments(spec)}
    del options["transforms"]
    # An evaluation that leaves pictures out would be no score.
    limit = config.bad_sample_limit if training and config.on_bad_sample == "skip" else None
    common = {"transforms": transforms, "seed": config.seed, "bad_sample_limit": limit}
    if spec.type in DATASETS:
        dataset = _build("dataset", {**options, **common}, DATASETS, where)
    else:
        theirs = _build("dataset", {**options, "transforms": []}, DATASETS, where)
        dataset = SegmentationDataset.from_paddleseg(theirs, shuffle=training, label_transforms=training, **common)
    if dataset.num_classes != config.model.num_classes:
        raise UsageError(
            f"{config.path}: expected model.num_classes to be the {dataset.num_classes} classes of {section}, found "
            f"{config.model.num_classes}: set model.num_classes to {dataset.num_classes}"
        )
    return dataset


def build_loss(config: Config) -> WeightedLoss:
    """(outputs by name, labels) -> (total, every term by name): each loss of `loss.types` on each output."""
    config.require("loss")
    assert config.loss is not None
    terms = {}
    for index, spec in enumerate(config.loss.types):
        options = {"type": spec.type, **arguments(spec)}
        loss = _build("loss", options, LOSSES, f"{config.path}: loss.types.{index}")
        terms[spec.type] = loss if spec.type in LOSSES else _summed(loss)
    return WeightedLoss(terms=terms, weights=config.loss.coef)


def _summed(loss: Callable[..., Any]) -> Callable[..., paddle.Tensor]:
    """A loss of PaddleSeg's; what it returns in several parts (MixedLoss does) becomes their sum."""

    def total(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        parts = loss(logits, labels)
        return paddle.add_n(parts) if isinstance(parts, (list, tuple)) else parts

    return total


def build_lr_scheduler(config: Config) -> lr.LRScheduler:
    """The rate of iteration i after i calls of `step()`: a linear warm-up, then the decay over the iterations left."""
    config.require("lr_scheduler")
    assert config.lr_scheduler is not None
    spec = config.lr_scheduler
    options = {"type": spec.type, **arguments(spec)}
    warmup, start = options.pop("warmup_iters"), options.pop("warmup_start_lr")
    if spec.type == "PolynomialDecay":
        options["decay_steps"] = config.iters - warmup
    scheduler = _build("scheduler", options, SCHEDULERS, f"{config.path}: lr_scheduler")
    return lr.LinearWarmup(scheduler, warmup, start, spec.learning_rate) if warmup else scheduler


def build_optimizer(config: Config, scheduler: lr.LRScheduler, model: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """The optimizer over all parameters of `model`."""
    config.require("optimizer")
    assert config.optimizer is not None
    spec, where = config.optimizer, f"{config.path}: optimizer"
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
    if name in ours:
        return ours[name]
    theirs = _foreign(kind)
    if name in theirs:
        return theirs[name]
    raise UsageError(
        f"{where}: expected type to name a {kind} of this project or of PaddleSeg, found {shown(name)}: "
        f"{suggest(name, [*ours, *theirs])}"
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
        # Paddle's own errors are pages long, the reason last.
        reason = " ".join(str(error).split("Error Message Summary:")[-1].split()).lstrip("- ") or type(error).__name__
        if len(reason) > 400:
            reason = f"{reason[:400]}..."
        raise UsageError(f"{where}: expected arguments that {name} accepts, but it says: {reason}") from error
