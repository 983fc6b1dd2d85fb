# SPDX-License-Identifier: Apache-2.0
"""Configurations of other servers for an export: Triton, with its ONNX Runtime, and OpenVINO Model Server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hmsa.deploy.runtime import Deployment, FileEntry, checked_file, read_deployment
from hmsa.errors import UsageError
from hmsa.serve.app import Limits
from hmsa.system.files import write_atomically

_TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int32": "TYPE_INT32"}


def write_config(
    kind: str, folder: Path, target: Path, *, name: str, precision: str = "fp32", limits: Limits
) -> list[Path]:
    """Write a repository of models for another server, with this one in it.

    Args:
        kind: a name in `KINDS`.
        folder: of the export.
        target: of the repository, which may hold other models.

    Returns:
        The files that were written.

    Raises:
        UsageError: the export has no files that this server reads, in this precision.
    """
    deployment = read_deployment(folder)
    formats, write = KINDS[kind]
    known = {(entry.format, entry.precision): entry for entry in deployment.formats}
    entry = next((known[name, precision] for name in formats if (name, precision) in known), None)
    if entry is None:
        raise UsageError(
            f"{folder}: expected {' or '.join(formats)} in {precision}, which {kind} reads, found "
            f"{', '.join(map(' '.join, known))}: export again in {formats[0]}, {precision}",
            settings=["precision"],
        )

    version = target / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    written = []
    for file in entry.files:
        source = checked_file(folder / file, deployment)
        written.append(version / f"model{source.suffix}")
        shutil.copyfile(source, written[-1])
    return [*written, write(target, name, deployment, entry, limits)]


def _triton(target: Path, name: str, deployment: Deployment, entry: FileEntry, limits: Limits) -> Path:
    """`config.pbtxt`, beside the folder of the version. Its shapes leave the batch out, as Triton adds that itself."""
    dims = [-1 if side is None else side for side in deployment.input_shape[1:]]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {deployment.side('N') or limits.max_batch}",
        _triton_tensor("input", deployment.input_name, deployment.input_dtype, dims),
    ]
    known = {axis: deployment.side(axis) or -1 for axis in "HW"}
    known["C"] = len(deployment.class_names) or -1
    for output in deployment.outputs:
        dims = [len(output.scales) if axis == "S" else known[axis] for axis in output.layout[1:]]
        lines.append(_triton_tensor("output", output.name, output.dtype, dims))
    lines += [
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {round(1000 * limits.max_wait_ms)}",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {round(1e6 * limits.timeout)}",
        f"    max_queue_size: {limits.max_queue}",
        "  }",
        "}",
        "",
    ]
    path = target / name / "config.pbtxt"
    write_atomically(path, "\n".join(lines).encode())
    return path


def _triton_tensor(kind: str, name: str, dtype: str, dims: list[int]) -> str:
    return f'{kind} [ {{ name: "{name}" data_type: {_TRITON_TYPES[dtype]} dims: {dims} }} ]'


def _ovms(target: Path, name: str, deployment: Deployment, entry: FileEntry, limits: Limits) -> Path:
    """`config.json` of the repository, which keeps what it says of other models."""
    path = target / "config.json"
    others = json.loads(path.read_bytes())["model_config_list"] if path.exists() else []
    config = {
        "name": name,
        "base_path": f"/models/{name}",
        "target_device": "CPU",
        # Else processors with bf16 would compute in it.
        "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},
    }
    kept = [other for other in others if other["config"]["name"] != name]
    text = json.dumps({"model_config_list": [*kept, {"config": config}]}, indent=2) + "\n"
    write_atomically(path, text.encode())
    return path


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Path, str, Deployment, FileEntry, Limits], Path]]] = {
    "triton": (("onnx",), _triton),
    "ovms": (("openvino", "onnx", "paddle"), _ovms),
}
"""Server -> the formats that it reads, the best first, and what writes its configuration."""
