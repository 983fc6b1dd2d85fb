# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from hmsa.serve.model import Tensor
from hmsa.serve.protocol import MAX_JSON_BYTES, told, understood
from hmsa.serve.refusal import Refusal

FLOATS = Tensor("x", "float32", (-1, 3, -1, -1))
BYTES = Tensor("image", "uint8", (-1, -1, -1, 3))
OUTPUTS = ["label", "confidence"]


def request(data=(1, 2.5), shape=(1, 2), datatype="FP32", name="x", behind=None, **more):
    sent = {"name": name, "shape": list(shape), "datatype": datatype}
    if behind is None:
        sent["data"] = data
    else:
        sent["parameters"] = {"binary_data_size": behind}
    return json.dumps({"inputs": [sent], **more}).encode()


def nested(depth):
    return [nested(depth - 1)] if depth else []


def refused(body, length=None, tensor=FLOATS):
    with pytest.raises(Refusal) as caught:
        understood(body, length, tensor, OUTPUTS)
    assert caught.value.status in (400, 413)
    return str(caught.value)


@pytest.mark.parametrize("data", [[0, 1, 2, 3.5], [[0, 1], [2, 3.5]], [[[0], [1]], [[2], [3.5]]]])
def test_numbers_come_flat_or_row_by_row(data):
    asked = understood(request(data, (2, 2), id="mine"), None, FLOATS, OUTPUTS)
    assert asked.images.dtype == np.float32
    assert asked.images.tolist() == [[0, 1], [2, 3.5]]
    assert asked.id == "mine"
    assert asked.outputs == {"label": False, "confidence": False}


def test_bytes_come_behind_the_json():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    head = request(shape=(2, 3), behind=24)
    asked = understood(head + array.tobytes(), str(len(head)), FLOATS, OUTPUTS)
    assert np.array_equal(asked.images, array)


def test_outputs_are_chosen_one_by_one_or_all_as_bytes():
    chosen = [{"name": "confidence", "parameters": {"binary_data": True}}, {"name": "label"}]
    assert understood(request(outputs=chosen), None, FLOATS, OUTPUTS).outputs == {"confidence": True, "label": False}
    all_binary = request(parameters={"binary_data_output": True})
    assert understood(all_binary, None, FLOATS, OUTPUTS).outputs == {"label": True, "confidence": True}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "in JSON"),
        (b"{", "in JSON"),
        (b"\xff\xfe", "in JSON"),
        (b"[" * 100_000, "in JSON"),
        (b"[]", "an object"),
        (b"{}", "inputs"),
        (request(name="y"), "one input, x, found y"),
        (request(datatype="INT8"), "datatype FP32, found INT8"),
        (request(shape=(1, -2)), "shape"),
        (request(shape=(1, 2**40)), "shape"),
        (request(shape=[1] * 9), "shape"),
        (request(shape=(2, 2)), "4 numbers"),
        (request([], (0, *[2**31 - 1] * 3)), "greater than or equal to 1"),
        (request(shape=(2**31 - 1,) * 8), "numbers"),
        (request(behind=8, shape=(2**31 - 1,) * 8), "bytes"),
        (request(name="\ud800"), "one input, x, found"),
        (request(datatype="\ud800"), "datatype FP32, found"),
        (request(outputs=[{"name": "\ud800"}]), "expected an output, found"),
        (request(["1", "2"]), "to be numbers"),
        (request([True, False]), "to be numbers"),
        (request([None, 1]), "to be numbers"),
        (request([[1], [1, 2]], (1, 3)), "equal length"),
        (request({"0": 1}, (1, 1)), "to be numbers"),
        (request([10**400, 1]), "to be numbers"),
        (request([1e39, 1]), "finite"),
        (request([float("nan"), 1]), "finite"),
        (request(outputs=[{"name": "labels"}]), "did you mean label"),
        (request(outputs=[{"name": "label", "parameters": {"classification": 3}}]), "classification"),
        (request(behind=8), "8 bytes"),
        (request(behind="8"), "8 bytes"),
        (request(behind=nested(200)), "8 bytes"),
        (request(nested(200)), "to be numbers"),
        (request() + b" " * MAX_JSON_BYTES, "binary"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(body, part):
    assert part in refused(body)


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "9" * 5000, "0" * 5000, "", "²"])
def test_a_wrong_length_of_the_json(length):
    assert "Inference-Header-Content-Length" in refused(request(), length)


def test_bytes_of_another_number():
    head = request(shape=(1, 2), behind=8)
    assert "8 bytes" in refused(head + bytes(7), str(len(head)))
    assert "8 bytes" in refused(head + bytes(9), str(len(head)))
    assert "nothing behind" in refused(request() + bytes(8), str(len(request())))
    assert "finite" in refused(head + b"\xff" * 8, str(len(head)))


def test_whole_numbers_stay_in_their_range():
    body = request([0, 255], datatype="UINT8", name="image")
    assert understood(body, None, BYTES, OUTPUTS).images.tolist() == [[0, 255]]
    for data, part in (([0, 256], "0 to 255"), ([-1, 0], "0 to 255"), ([0.5, 1], "whole")):
        assert part in refused(request(data, datatype="UINT8", name="image"), tensor=BYTES)


def test_answers_as_numbers_and_as_bytes():
    answers = {
        "label": np.arange(40_000, dtype=np.int32).reshape(1, 200, 200),
        "confidence": np.full((1, 200, 200), 0.1, np.float32),
    }
    chosen = [{"name": "label"}, {"name": "confidence", "parameters": {"binary_data": True}}]
    asked = understood(request(outputs=chosen, id="mine"), None, FLOATS, OUTPUTS)
    body, length = told(asked, answers, "model", "1")
    head = json.loads(body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("model", "1", "mine")
    label, confidence = head["outputs"]
    assert label["data"] == list(range(40_000))
    assert (label["datatype"], label["shape"]) == ("INT32", [1, 200, 200])
    assert confidence["parameters"] == {"binary_data_size": 160_000}
    assert body[length:] == answers["confidence"].tobytes()


def test_too_many_numbers_for_json():
    asked = understood(request(), None, FLOATS, OUTPUTS)
    with pytest.raises(Refusal, match="ask for them as bytes") as caught:
        told(asked, {"label": np.zeros(2**22 + 1, np.int32), "confidence": np.zeros(1, np.float32)}, "model", "1")
    assert caught.value.status == 413


def test_what_json_cannot_say_is_asked_for_as_bytes():
    answers = {"label": np.zeros(1, np.int32), "confidence": np.array([np.inf, np.nan], np.float32)}
    with pytest.raises(Refusal, match="expected finite numbers in confidence, found others: ask for it as bytes"):
        told(understood(request(), None, FLOATS, OUTPUTS), answers, "model", "1")
    asked = understood(request(parameters={"binary_data_output": True}), None, FLOATS, OUTPUTS)
    body, length = told(asked, answers, "model", "1")
    assert np.isnan(np.frombuffer(body[length:], np.float32)[2])
