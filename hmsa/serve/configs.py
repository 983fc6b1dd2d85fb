# SPDX-License-Identifier: Apache-2.0
"""Configurations of other servers for an export: Triton, with its ONNX Runtime, and OpenVINO Model Server."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa.deploy.engines import ENGINES, readable
from hmsa.errors import DataError, UsageError, suggest
from hmsa.system.files import disk_errors, write_atomically

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)

if TYPE_CHECKING:
    from hmsa.deploy.runtime import Deployment
    from hmsa.serve.app import Limits

    Writer = Callable[[Path, str, Deployment, Limits], tuple[Path, str]]


def write_config(
    kind: str, folder: Path, target: Path, *, name: str, precision: str = "fp32", limits: Limits
) -> dict[Path, str]:
    """Write a repository of models for another server, with this one in it.

    Args:
        kind: a name in `KINDS`.
        folder: of the export.
        target: of the repository, which may hold other models.

    Returns:
        The files of the model and the configuration -> "written", "replaced", or "removed": those of an earlier export
        in another format, beside which the server could not tell which to take.

    Raises:
        UsageError: an unknown server, or the export has no files that it reads, in this precision.
        DataError: what stands there cannot be added to, or the files cannot be copied.
    """
    from hmsa.deploy.runtime import checked_file, read_deployment

    if not _NAME.fullmatch(name):
        raise UsageError(
            f"expected a folder whose name, which is the model's, has letters, digits, '_', '-' and '.' alone, found "
            f"{name!r}: rename it"
        )
    if kind not in KINDS:
        raise UsageError(f"expected a server, found {kind}: {suggest(kind, KINDS)}")
    deployment = read_deployment(folder)
    engine, configured = KINDS[kind]
    formats = [name for name, precisions in ENGINES[engine].reads.items() if precision in precisions]
    formats = formats or list(ENGINES[engine].reads)
    entry = next((entry for entry in readable(engine, deployment) if entry.precision == precision), None)
    if entry is None:
        there = ", ".join(f"{entry.format} {entry.precision} ({entry.files[0]})" for entry in deployment.formats)
        raise UsageError(
            f"{folder}: expected {' or '.join(formats)} in {precision}, which {kind} reads, found "
            f"{there}: export again in {formats[0]}, {precision}",
            settings=["precision"],
        )

    sources = [checked_file(folder / file, deployment) for file in entry.files]
    with disk_errors(target):
        config, text = configured(target, name, deployment, limits)
        there = config.exists()
        done = _copied(sources, target / name / "1")
        write_atomically(config, text.encode())
    return {**done, config: "replaced" if there else "written"}


def _copied(sources: list[Path], version: Path) -> dict[Path, str]:
    """Put the files of a model into the folder of its version, in place of all that were there."""
    version.mkdir(parents=True, exist_ok=True)
    done = dict.fromkeys(sorted(version.glob("model.*")), "removed")
    with tempfile.TemporaryDirectory(dir=version, prefix=".writing-") as partial:
        copies = [Path(shutil.copyfile(source, f"{partial}/model{source.suffix}")) for source in sources]
        for path in done:
            path.unlink()
        for copy in copies:
            path = version / copy.name
            done[path] = "replaced" if path in done else "written"
            copy.replace(path)
    return done


def _triton(target: Path, name: str, deployment: Deployment, limits: Limits) -> tuple[Path, str]:
    """`config.pbtxt`, beside the folder of the version.

    Triton makes batches of models alone that take any number of images, and adds that axis to their shapes itself.
    """
    fixed = deployment.side("N")
    start = 0 if fixed else 1
    known = {axis: deployment.side(axis) or -1 for axis in "NHW"}
    known["C"] = len(deployment.class_names) or -1
    dims = [side or -1 for side in deployment.input_shape[start:]]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {0 if fixed else limits.max_batch}",
        _triton_tensor("input", deployment.input_name, deployment.input_dtype, dims),
    ]
    for output in deployment.outputs:
        dims = [len(output.scales) if axis == "S" else known[axis] for axis in output.layout[start:]]
        lines.append(_triton_tensor("output", output.name, output.dtype, dims))
    if not fixed:
        lines += [
            "dynamic_batching {",
            f"  max_queue_delay_microseconds: {round(1000 * limits.max_wait_ms)}",
            "  default_queue_policy {",
            "    timeout_action: REJECT",
            f"    default_timeout_microseconds: {round(1e6 * limits.timeout)}",
            f"    max_queue_size: {limits.max_queue}",
            "  }",
            "}",
        ]
    return target / name / "config.pbtxt", "\n".join([*lines, ""])


def _triton_tensor(kind: str, name: str, dtype: str, dims: list[int]) -> str:
    from hmsa.serve.protocol import DATATYPES

    return f'{kind} [ {{ name: "{name}" data_type: TYPE_{DATATYPES[dtype]} dims: {dims} }} ]'


def _ovms(target: Path, name: str, deployment: Deployment, limits: Limits) -> tuple[Path, str]:
    """`config.json` of the repository, which keeps what it says of other models."""
    path = target / "config.json"
    config = {
        "name": name,
        "base_path": f"/models/{name}",
        "target_device": "CPU",
        # Else processors with bf16 would compute in it.
        "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},
    }
    try:
        whole = json.loads(path.read_bytes()) if path.exists() else {}
        kept = [other for other in whole.get("model_config_list", []) if other["config"]["name"] != name]
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise DataError(
            f"{path}: expected a configuration of OpenVINO Model Server, found something else: correct it, or name "
            "another folder"
        ) from None
    return path, json.dumps({**whole, "model_config_list": [*kept, {"config": config}]}, indent=2) + "\n"


KINDS: dict[str, tuple[str, Writer]] = {
    "triton": ("onnxruntime", _triton),
    "ovms": ("openvino", _ovms),
}
"""Server -> the engine that it runs, and what says where its configuration lies, and its text."""
