# SPDX-License-Identifier: Apache-2.0
"""Opening a network for evaluation and prediction: in Paddle's eager mode, or as programs of another backend.

A backend gets the network at one scale, in two programs: `logits` for the largest scale, whose attention nobody asks
for, and `attended`, which gives logits and attention, for all others. The scales are fused outside
(`hmsa.models.hierarchical.fuse_scales`), one after the other, so that one scale's tensors are gone before the next
one's are made and any series of scales runs on the same programs. Those of a set of weights are kept from one start to
the next (`hmsa.inference.cache`).
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional, cast

import hmsa.system.prepared  # noqa: F401

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.version import full_version as PADDLE_VERSION

from hmsa.distributed import ranks
from hmsa.errors import DataError
from hmsa.inference import cache
from hmsa.inference.backends import BACKENDS, choose, packages_of
from hmsa.inference.programs import open_programs, write_checked_programs, write_programs
from hmsa.inference.tracing import replaced
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import (
    FLOAT32_OPS,
    Network,
    ScaleNetwork,
    decided_shares,
    fuse_scales,
    joint_logits,
)


class FusedNetwork:
    """A network at all its scales: images, float32 [N, 3, H, W] -> logits [N, K, H, W].

    Args:
        at_scale: the network at one scale.
        scales, align_corners: see `fuse_scales`.
        compare: called once, with the first images and their logits.
    """

    def __init__(
        self,
        at_scale: ScaleNetwork,
        *,
        scales: Sequence[float],
        align_corners: bool,
        compare: Optional[Callable[[Tensor, Tensor], None]] = None,
    ) -> None:
        self.scales = tuple(sorted(scales))
        self._at_scale = at_scale
        self._align_corners = align_corners
        self._compare = compare

    def __call__(self, image: Tensor) -> Tensor:
        logits = fuse_scales(self._at_scale, image, self.scales, align_corners=self._align_corners)["joint"]
        if self._compare is not None:
            compare, self._compare = self._compare, None
            compare(image, logits)
        return logits

    def inside(self, image: Tensor, *, alone: bool = False) -> Tensor:
        """Everything of one run, at the images' size: [N, K + 2 S, H, W], or with `alone` [N, K (1 + S) + 2 S, H, W].

        These are the logits of the fused answer; with `alone` those of each scale in `scales` (the smallest first) by
        itself; their attention; and what share of the answer they decide, see `decided_shares`.
        """
        options: Any = {"align_corners": self._align_corners, "return_attention": True, "return_scales": alone}
        found = fuse_scales(self._at_scale, image, self.scales, **options)
        maps = [found[f"attention_{scale:g}"] for scale in self.scales]  # [N, 1, H * scale, W * scale]
        size = image.shape[-2:]
        attention = paddle.concat(
            [F.interpolate(x, size, mode="bilinear", align_corners=self._align_corners) for x in maps], axis=1
        )
        logits = [found["joint"], *(found[f"scale_{scale:g}"] for scale in self.scales if alone)]
        return paddle.concat([*logits, attention, decided_shares(attention)], axis=1)


def open_network(
    build: Callable[[], MscaleOCRNet],
    *,
    identity: Any,
    scales: Sequence[float],
    align_corners: bool,
    backend: str = "auto",
    precision: str = "fp32",
) -> FusedNetwork:
    """The network for evaluation and prediction, run by a backend.

    Args:
        build: makes the network with its weights; not called if the cache holds its programs.
        identity: JSON data that tell this network and its weights from every other.
        scales, align_corners: those of the network.
        backend: a name in `hmsa.inference.backends`, or "auto".
        precision: "fp32", or another where the backend has it; then the first image is run in both, and the share of
            pixels that get the same class is printed.

    Raises:
        UsageError: a package is missing, or the backend lacks the precision on this device.
        DataError: the backend does not answer as the network does ("auto" says so and goes on eagerly).
    """
    chosen = choose(backend, precision)
    has_programs, fall_back = BACKENDS[chosen].forms, backend == "auto"
    folder = _cached_programs(build, identity, chosen, fall_back=fall_back) if has_programs else None
    if folder is None:
        model = build()
        model.eval()
        in_precision = {"fp32": model.at_scale, "bf16": _in_bf16(model.at_scale)}

    def network(precision: str, compare: Optional[Callable[[Tensor, Tensor], None]] = None) -> FusedNetwork:
        at_scale = in_precision[precision] if folder is None else open_programs(folder, chosen, precision)
        return FusedNetwork(at_scale, scales=scales, align_corners=align_corners, compare=compare)

    exact = network("fp32")
    return exact if precision == "fp32" else network(precision, _agreement_with(exact, precision))


class NetworkInTraining:
    """A network whose weights change, for evaluations between steps of its training.

    With an engine, its programs are written anew each time. Paddle never gives back all of the memory that this takes:
    for a small W18 it was 3 MiB an evaluation with Paddle 2.6.2 and 3.2.2, whatever the size of the weights.

    Raises:
        UsageError: see `choose`; a call raises DataError where the engine does not answer as the network does.
    """

    def __init__(self, model: nn.Layer, engine: str = "auto") -> None:
        self._model = model
        self._backend = choose(engine)
        self._written: Optional[MscaleOCRNet] = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Network]:
        """The network as it is at this moment; the model itself is left as it was."""
        model = self._model
        was_training = model.training
        model.eval()
        try:
            if not isinstance(model, MscaleOCRNet):
                yield joint_logits(model)
                return
            if self._backend == "eager":
                yield FusedNetwork(model.at_scale, scales=model.scales, align_corners=model.align_corners)
                return
            with tempfile.TemporaryDirectory(prefix="hmsa-") as folder:
                programs = write_checked_programs(model, Path(folder), self._backend, self._write)
                yield FusedNetwork(programs, scales=model.scales, align_corners=model.align_corners)
        finally:
            if was_training:
                model.train()

    def _write(self, model: MscaleOCRNet, folder: Path, form: str) -> None:
        # Paddle 2.6 never frees the tensors of a network that it has written: it is the first one, with new values.
        if self._written is None:
            self._written = model
        self._written.set_state_dict(cast(Any, model.state_dict()))
        # Paddle 3 keeps the call stack in which it traced an operator for ever: here, an empty one.
        with replaced(traceback, "extract_stack", lambda *_, **__: traceback.StackSummary()):
            write_programs(self._written, folder, form)


def _cached_programs(
    build: Callable[[], MscaleOCRNet], identity: Any, backend: str, *, fall_back: bool
) -> Optional[Path]:
    """The folder of the network's programs, written and checked if need be; None where eager mode has to do."""
    # All that has a part in making and running a program.
    versions = [PADDLE_VERSION, *map(version, ("paddleseg", *packages_of(backend)))]
    depends_on = {"network": identity, "backend": backend, "versions": versions, "code": code_hash()}
    if not ranks.is_main():
        ranks.barrier()  # The first rank fills the cache, the others find it full.
    try:
        return cache.entry(depends_on, lambda folder: write_checked_programs(build(), folder, backend))
    except DataError as error:
        # Weights that do not fit do not fit in eager mode either.
        if not (fall_back and "backend" in error.settings):
            raise
        print(f"warning: {error}; the network runs eagerly instead", file=sys.stderr)
        return None
    finally:
        if ranks.is_main():
            ranks.barrier()


def code_hash(package: Path = Path(__file__).parents[1]) -> str:
    """Of the files of this package that decide what a program computes; a program made by other code is stale."""
    digest = hashlib.sha256()
    for path in sorted([*package.glob("models/*.py"), *package.glob("inference/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _in_bf16(at_scale: ScaleNetwork) -> ScaleNetwork:
    """Convolutions in bf16; `FLOAT32_OPS`, and the fusion outside, stay in float32."""

    def run(x: Tensor, attention: bool) -> tuple[Tensor, Optional[Tensor]]:
        with paddle.amp.auto_cast(dtype="bfloat16", custom_black_list=set(FLOAT32_OPS)):
            logits, weight = at_scale(x, attention)
        return logits.astype("float32"), None if weight is None else weight.astype("float32")

    return run


def _agreement_with(exact: Network, precision: str) -> Callable[[Tensor, Tensor], None]:
    """What prints how many pixels keep the class that they have in fp32, given images and their logits."""

    def compare(image: Tensor, logits: Tensor) -> None:
        same = paddle.argmax(logits, axis=1) == paddle.argmax(exact(image), axis=1)
        share = 100 * float(same.astype("float32").mean())
        if ranks.is_main():
            print(f"{precision}: {share:.2f} % of the pixels of the first image get the class they get in fp32")

    return compare
