# SPDX-License-Identifier: Apache-2.0
"""Triton's own client of the Open Inference Protocol."""

from __future__ import annotations

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http", reason="pip install tritonclient[http] gives Triton's client")
from tritonclient.utils import InferenceServerException  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 20, 30)).astype(np.float32)


@pytest.fixture(scope="module")
def client(address):
    with http.InferenceServerClient(address.removeprefix("http://")) as client:
        yield client


def sent(images=IMAGES, *, name="x", datatype="FP32", binary=True):
    given = http.InferInput(name, images.shape, datatype)
    given.set_data_from_numpy(images, binary_data=binary)
    return [given]


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("light")
    assert client.is_model_ready("light", "1")
    assert not client.is_model_ready("dark")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("light")
    assert found == client.get_model_metadata("light", "1")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert found["outputs"] == [
        {"name": "label", "datatype": "INT32", "shape": [-1, -1, -1]},
        {"name": "confidence", "datatype": "FP32", "shape": [-1, -1, -1]},
    ]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tensors_come_back(client, binary_in, binary_out):
    outputs = None
    if binary_out is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("confidence", "label")]
    result = client.infer("light", sent(binary=binary_in), outputs=outputs, request_id="mine", model_version="1")
    assert np.array_equal(result.as_numpy("label"), IMAGES[:, 0] > 0)
    assert np.array_equal(result.as_numpy("confidence"), np.abs(IMAGES[:, 0]))
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_name"] == "light"


def test_requests_at_once(client):
    waiting = [client.async_infer("light", sent(IMAGES[:1] * sign)) for sign in (1, -1)]
    for request, expected in zip(waiting, (IMAGES[:1, 0] > 0, IMAGES[:1, 0] < 0)):
        assert np.array_equal(request.get_result().as_numpy("label"), expected)


@pytest.mark.parametrize(
    ("model", "version", "given", "status", "part"),
    [
        ("dark", "", sent(), "404", "expected the model light, found dark"),
        ("light", "2", sent(), "404", "version 1"),
        ("light", "", sent(name="y"), "400", "one input, x, found y"),
        ("light", "", sent(IMAGES.astype(np.float64), datatype="FP64"), "400", "FP32, found FP64"),
        ("light", "", sent(IMAGES[:, :2]), "400", "of the shape N 3 H W"),
        ("light", "", sent(IMAGES[0]), "400", "of the shape N 3 H W"),
        ("light", "", sent(IMAGES[:, :, :4]), "400", "at least 16 pixels"),
        ("light", "", sent(IMAGES[:0]), "400", "greater than or equal to 1"),
        ("light", "", sent(IMAGES * np.float32(np.nan)), "400", "finite"),
        ("light", "", sent(np.zeros((9, 3, 16, 16), np.float32)), "400", "at most 8 images"),
        ("light", "", sent(np.zeros((2, 3, 2048, 1025), np.float32)), "413", "pixels in all"),
    ],
)
def test_errors(client, model, version, given, status, part):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, given, model_version=version)
    assert caught.value.status() == status
    assert part in caught.value.message()


def test_compressed_requests_are_refused(client):
    with pytest.raises(InferenceServerException, match="content-encoding"):
        client.infer("light", sent(), request_compression_algorithm="gzip")
