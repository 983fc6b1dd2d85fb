# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol, version 2: what its requests say and its answers look like, in JSON and, by its
extension for binary tensors, with bytes behind the JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Optional

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from hmsa.errors import dotted, suggest
from hmsa.serve.batching import Answers
from hmsa.serve.model import Tensor
from hmsa.serve.refusal import Refusal

LENGTH_HEADER = "Inference-Header-Content-Length"
"""How long the JSON is, with binary tensors behind it."""

EXTENSIONS = ["binary_tensor_data"]

DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "uint16": "UINT16", "int32": "INT32"}
"""NumPy's name -> the protocol's."""

MAX_JSON_BYTES = 4 << 20  # while it is read, nothing else runs
_MAX_JSON_NUMBERS = 1 << 22
_NUMBERS_AT_A_TIME = 1 << 14  # written between two chances for other threads

_Parameters = dict[str, Any]
_parsing = threading.Lock()  # what JSON is made into takes many times its memory: one at a time


class RequestInput(BaseModel):
    """A tensor that is sent."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, lt=1 << 31)]], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: _Parameters = {}
    data: Any = None


class RequestOutput(BaseModel):
    """A tensor that is asked for."""

    name: str
    parameters: _Parameters = {}


class InferenceRequest(BaseModel):
    """The JSON of a request."""

    id: Optional[str] = None
    parameters: _Parameters = {}
    inputs: Annotated[list[RequestInput], Field(min_length=1)]
    outputs: Optional[list[RequestOutput]] = None


@dataclass(frozen=True)
class Asked:
    """A request that was understood.

    Attributes:
        images: the input, as the network takes it.
        outputs: names of what is asked for -> whether as bytes.
        id: the client's own.
    """

    images: np.ndarray
    outputs: dict[str, bool]
    id: Optional[str]


def understood(body: bytes, json_length: Optional[str], tensor: Tensor, outputs: Sequence[str]) -> Asked:
    """Read a request.

    Args:
        json_length: of the header `LENGTH_HEADER`; None without it, when all is JSON.
        tensor: the input that the network takes.
        outputs: names of those it gives.

    Raises:
        Refusal: it says what was expected and what was found.
    """
    length = len(body)
    if json_length is not None:
        is_number = json_length.isascii() and json_length.isdecimal() and len(json_length) <= 20
        if not is_number or int(json_length) > len(body):
            raise Refusal(
                400, f"expected {LENGTH_HEADER} to be at most the body's {len(body)} bytes, found {json_length:.40}"
            )
        length = int(json_length)
    if length > MAX_JSON_BYTES:
        raise Refusal(
            413,
            f"expected at most {MAX_JSON_BYTES} bytes of JSON, found {length}: send the tensor as bytes, by the "
            "binary tensor extension",
        )
    with _parsing:
        request = _parsed(body[:length])
        given = _the_input(request, tensor)
        images = _array(given, memoryview(body)[length:], tensor)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise Refusal(400, f"expected finite numbers in {tensor.name}, found others")
    return Asked(images, _wanted(request, outputs), request.id)


def _parsed(text: bytes) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = dotted(first["loc"]) or "an object"
        raise Refusal(400, f"expected a request of the Open Inference Protocol, but {place}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"expected a request in JSON, but: {error!s:.200}") from None


def _the_input(request: InferenceRequest, tensor: Tensor) -> RequestInput:
    names = [given.name for given in request.inputs]
    if names != [tensor.name]:
        raise Refusal(400, f"expected one input, {tensor.name}, found {', '.join(names):.200}")
    (given,) = request.inputs
    datatype = DATATYPES[tensor.dtype]
    if given.datatype != datatype:
        raise Refusal(400, f"expected {tensor.name} of the datatype {datatype}, found {given.datatype:.40}")
    if "shared_memory_region" in given.parameters:
        raise Refusal(400, "expected the tensor itself, found a region of shared memory, which is not supported")
    return given


def _array(given: RequestInput, behind: memoryview, tensor: Tensor) -> np.ndarray:
    """The tensor, of the JSON or of the bytes behind it."""
    dtype, count = np.dtype(tensor.dtype), prod(given.shape)
    size = given.parameters.get("binary_data_size")
    if size is None:
        if len(behind):
            raise Refusal(400, f"expected nothing behind the JSON, found {len(behind)} bytes: give binary_data_size")
        return _of_numbers(given.data, count, dtype, tensor.name).reshape(given.shape)

    if given.data is not None:
        raise Refusal(400, f"expected {tensor.name} as data or as bytes, found both")
    if size != len(behind) or size != count * dtype.itemsize or isinstance(size, bool):
        raise Refusal(
            400,
            f"expected {count * dtype.itemsize} bytes of {tensor.name} for the shape {given.shape}, found "
            f"binary_data_size {size if isinstance(size, int) else type(size).__name__!s:.40} and {len(behind)} bytes",
        )
    return np.frombuffer(behind, dtype.newbyteorder("<"), count).astype(dtype, copy=False).reshape(given.shape)


def _of_numbers(data: Any, count: int, dtype: np.dtype, name: str) -> np.ndarray:
    """Numbers of JSON, in a list or in lists of lists, row by row."""
    try:
        numbers = np.asarray(data if isinstance(data, list) else None)
    except (ValueError, OverflowError):
        numbers = np.asarray(None)
    kinds = "iuf" if dtype.kind == "f" else "iu"
    if numbers.dtype.kind not in kinds and numbers.size:
        what = "numbers" if dtype.kind == "f" else "whole numbers"
        raise Refusal(400, f"expected the data of {name} to be {what} in lists of equal length, found something else")
    if numbers.size != count:
        raise Refusal(400, f"expected {count} numbers in the data of {name}, as its shape says, found {numbers.size}")
    if dtype.kind != "f" and numbers.size:
        limits = np.iinfo(dtype)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            raise Refusal(400, f"expected numbers from {limits.min} to {limits.max} in {name}, found others")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        return numbers.reshape(-1).astype(dtype)


def _wanted(request: InferenceRequest, outputs: Sequence[str]) -> dict[str, bool]:
    all_binary = request.parameters.get("binary_data_output") is True
    asked = request.outputs or [RequestOutput(name=name) for name in outputs]
    for output in asked:
        if output.name not in outputs:
            raise Refusal(400, f"expected an output, found {output.name[:80]!r}: {suggest(output.name[:80], outputs)}")
        for name in ("classification", "shared_memory_region"):
            if name in output.parameters:
                raise Refusal(400, f"expected the output {output.name} whole, found {name}, which is not supported")
    return {output.name: output.parameters.get("binary_data", all_binary) is True for output in asked}


# --- Answers. ---


def told(asked: Asked, answers: Answers, model: str, version: str) -> tuple[bytes, Optional[int]]:
    """The body of an answer, and how long its JSON is; None where that is all.

    Raises:
        Refusal: numbers that JSON has no words for, or more than are written as JSON.
    """
    as_json = sum(answers[name].size for name, binary in asked.outputs.items() if not binary)
    if as_json > _MAX_JSON_NUMBERS:
        raise Refusal(
            413,
            f"expected outputs of at most {_MAX_JSON_NUMBERS} numbers as JSON, found {as_json}: ask for them as bytes "
            "(binary_data), or send smaller images",
        )
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if asked.id is not None:
        head["id"] = asked.id
    outputs, behind = [], []
    for name, binary in asked.outputs.items():
        array = np.ascontiguousarray(answers[name])
        described = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if binary:
            behind.append(array.astype(array.dtype.newbyteorder("<"), copy=False))
            described["parameters"] = {"binary_data_size": array.nbytes}
            outputs.append(json.dumps(described))
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refusal(
                    400, f"expected finite numbers in {name}, found others: ask for it as bytes (binary_data)"
                )
            outputs.append(f'{json.dumps(described)[:-1]}, "data": [{",".join(_written(array))}]}}')
    text = f'{json.dumps(head)[:-1]}, "outputs": [{", ".join(outputs)}]}}'.encode()
    return b"".join([text, *behind]), len(text) if behind else None


def _written(array: np.ndarray) -> Iterator[str]:
    """The numbers in pieces, between which other threads get their turn."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _NUMBERS_AT_A_TIME):
        yield json.dumps(flat[start : start + _NUMBERS_AT_A_TIME].tolist(), separators=(",", ":"))[1:-1]


def metadata(tensor: Tensor) -> dict[str, Any]:
    """How a tensor is described."""
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": list(tensor.shape)}


def schemas(tensor: Tensor, outputs: Sequence[Tensor]) -> dict[str, Any]:
    """JSON schemas of a request with these tensors, by their names, as OpenAPI has them."""
    whole = InferenceRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = whole.pop("$defs")
    given = parts["RequestInput"]["properties"]
    given["name"]["enum"], given["datatype"]["enum"] = [tensor.name], [DATATYPES[tensor.dtype]]
    given["data"] = {"type": "array", "description": "numbers, flat or row by row"}
    parts["RequestOutput"]["properties"]["name"]["enum"] = [output.name for output in outputs]
    return {"InferenceRequest": whole, **parts}
