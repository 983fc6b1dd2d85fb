# SPDX-License-Identifier: Apache-2.0
"""What runs an export, in one table, and an export that is open in one of them.

Reading the table loads neither Paddle nor an engine, as command lines list its names in their help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hmsa.errors import DataError, HmsaError, UsageError, suggest
from hmsa.inference.backends import BACKENDS, need

if TYPE_CHECKING:
    import numpy as np

    from hmsa.deploy.runtime import Deployment, FileEntry
    from hmsa.inference.paddle_inference import Program

    Opener = Callable[[Path, Optional[int], FileEntry, Deployment], Program]


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        reads: format -> the precisions of its files that it runs, the best format first (`hmsa.deploy.formats`).
        open: (the first of a format's files, threads or None for as many as this process may use, what `deploy.yaml`
            says of the format, and of all) -> the program.
        packages: that it needs besides Paddle; they are imported by the names they are installed by.
        extra: the one of pyproject.toml that installs them.
        lower: precision of no file -> what opens the files of fp32 to compute in it.
        not_read: endings of files that it does not know, although it knows the format.
    """

    reads: Mapping[str, tuple[str, ...]]
    open: Opener
    packages: tuple[str, ...] = ()
    extra: str = ""
    lower: Mapping[str, Opener] = field(default_factory=dict)
    not_read: tuple[str, ...] = ()

    def can_read(self, entry: FileEntry) -> bool:
        return entry.precision in self.reads.get(entry.format, ()) and not entry.files[0].endswith(self.not_read)


class Session:
    """An export that is open in an engine: images -> answers by name.

    It keeps one set of buffers: call it from one thread at a time.

    Attributes:
        deployment: what `deploy.yaml` says of the export.
    """

    def __init__(self, deployment: Deployment, run: Program) -> None:
        self.deployment = deployment
        self._run = run

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network.

        Args:
            images: of the kind and the layout that `deployment.input_dtype` and `.input_layout` name, of any size or
                of `deployment.input_shape`.

        Returns:
            The arrays that `deployment.outputs` names, in that order.

        Raises:
            DataError: images of another size than the network takes, or too small for its smallest scale.
        """
        import numpy as np

        deployment = self.deployment
        deployment.check_images(images.shape)
        answers = self._run(np.ascontiguousarray(images, deployment.input_dtype))
        return {
            output.name: np.asarray(answer).astype(output.dtype, copy=False)
            for output, answer in zip(deployment.outputs, answers)
        }


def is_installed(engine: str) -> bool:
    """Whether all packages of an engine are there."""
    return all(map(find_spec, ENGINES[engine].packages))


def readable(engine: str, deployment: Deployment) -> list[FileEntry]:
    """Of an export's files those that an engine reads, its best format first."""
    row = ENGINES[engine]
    found = [entry for entry in deployment.formats if row.can_read(entry)]
    return sorted(found, key=lambda entry: list(row.reads).index(entry.format))


def precisions_of(engine: str, deployment: Deployment) -> dict[str, str]:
    """Precision -> the best format in which an engine reads it, of all that an export has."""
    found: dict[str, str] = {}
    for entry in readable(engine, deployment):
        found.setdefault(entry.precision, entry.format)
    return {**found, **{precision: found["fp32"] for precision in ENGINES[engine].lower if "fp32" in found}}


def preferred(deployment: Deployment, precision: str = "fp32") -> str:
    """What runs an export fastest here: on a GPU paddle, else the first of `_FASTEST` that is installed and reads it in
    this precision; where none is, paddle, which says what it lacks."""
    from hmsa.system.device import on_gpu

    order = ("paddle", *_FASTEST) if on_gpu() else _FASTEST
    fitting = (name for name in order if precision in precisions_of(name, deployment) and is_installed(name))
    return next(fitting, "paddle")


def open_export(
    folder: str | Path,
    engine: str = "paddle",
    precision: str = "fp32",
    threads: Optional[int] = None,
    *,
    format: Optional[str] = None,
) -> Session:
    """Open an export. A model is a program: load only what you trust.

    Args:
        engine: a name in `ENGINES`.
        precision: of the files: "fp32" or another in which export.py wrote a format that the engine reads; or "bf16",
            in which openvino computes with the files of fp32.
        threads: to compute with; None for as many as this process may use.
        format: of those that the engine reads; None for the best that is there.

    Raises:
        UsageError: an unknown engine, a missing package, or nothing in the folder that the engine reads in this
            precision.
        DataError: the folder is incomplete or damaged.
    """
    from hmsa.deploy.runtime import checked_file, read_deployment

    if engine not in ENGINES:
        raise UsageError(f"expected an engine, found {engine!r}: {suggest(engine, ENGINES)}", settings=["backend"])
    row = ENGINES[engine]
    need(f"the engine {engine}", row.packages, row.extra, settings=["backend"])

    deployment = read_deployment(folder)
    entry = _chosen(folder, deployment, engine, precision, format)
    files = [checked_file(Path(folder) / name, deployment) for name in entry.files]
    opener = row.lower.get(precision, row.open)
    try:
        return Session(deployment, opener(files[0], threads, entry, deployment))
    except HmsaError:
        raise
    # Engines raise whatever comes first.
    except Exception as error:
        raise DataError(
            f"{files[0]}: expected a model that {engine} can run, found one that is damaged or of another kind "
            f"({(str(error).strip().splitlines() or [type(error).__name__])[-1]:.200}); export again"
        ) from error


def _chosen(
    folder: str | Path, deployment: Deployment, engine: str, precision: str, format: Optional[str]
) -> FileEntry:
    """Of what an engine reads of an export, the best in this precision, and in this format if one is named."""
    row = ENGINES[engine]
    of_files = "fp32" if precision in row.lower else precision
    for entry in readable(engine, deployment):
        if entry.precision == of_files and format in (None, entry.format):
            return entry
    wanted = [name for name, precisions in row.reads.items() if of_files in precisions and format in (None, name)]
    there = ", ".join(f"{entry.format} {entry.precision} ({entry.files[0]})" for entry in deployment.formats)
    raise UsageError(
        f"{folder}: expected {' or '.join(wanted or row.reads)} in {of_files}, which {engine} reads, found {there}: "
        "choose another engine or precision, or export again in that format",
        settings=["backend", "precision"],
    )


# --- How each opens a program. ---


def _paddle(path: Path, threads: Optional[int], entry: FileEntry, deployment: Deployment) -> Program:
    from hmsa.inference.paddle_inference import open_predictor, program_of

    return program_of(open_predictor(path, path.with_name(entry.files[1]), threads))


def _backend(name: str, precision: str = "fp32") -> Opener:
    opener: Any = BACKENDS[name].open
    return lambda path, threads, entry, deployment: opener(path, precision, threads)


def _tflite(path: Path, threads: Optional[int], entry: FileEntry, deployment: Deployment) -> Program:
    from hmsa.deploy import tflite

    return tflite.open_program(path, threads, entry, deployment)


ENGINES: dict[str, Engine] = {
    "paddle": Engine({"paddle": ("fp32",)}, _paddle),
    "onnxruntime": Engine({"onnx": ("fp32", "fp16", "int8")}, _backend("onnxruntime"), ("onnxruntime",), "onnx"),
    "openvino": Engine(
        # fp16 in ONNX is typed as TensorRT wants it; OpenVINO's own files of fp16 are made for it.
        {"openvino": ("fp32", "fp16", "int8"), "onnx": ("fp32", "int8"), "paddle": ("fp32",)},
        _backend("openvino"),
        ("openvino",),
        "openvino",
        lower={"bf16": _backend("openvino", "bf16")},
        not_read=(".json",),
    ),
    "tflite": Engine({"tflite": ("fp32",)}, _tflite, ("ai_edge_litert",), "tflite"),
}
"""Name -> what it is. A new engine is a row here, and its opener in `hmsa.inference.backends` or a file beside. What
it reads is what an export is verified by it in, where it is installed."""

_FASTEST = ("openvino", "onnxruntime", "paddle", "tflite")
"""On a CPU."""
