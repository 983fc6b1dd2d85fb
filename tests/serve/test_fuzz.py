# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody would write: damaged ones, and those that schemathesis makes of the server's own description.
None of them may be answered with a failure."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import serving

CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    ]
)


@pytest.mark.slow
def test_no_request_makes_it_fail(tmp_path):
    pytest.importorskip("schemathesis", reason="pip install schemathesis fuzzes the server")
    with serving(max_wait_ms=0) as address:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", CHECKS),
            *("--max-examples", "50", "--seed", "1", "--request-timeout", "10", "--no-color"),
            *("--generation-database", "none", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        metrics = httpx.get(f"{address}/metrics").text
    asked = [line for line in metrics.splitlines() if line.startswith("hmsa_requests_total")]
    assert not any('status="5' in line for line in asked)
    for route in ("/segment", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        assert any(f'route="{route}",status="400"' in line for line in asked), asked
    assert any('route="/v2/models/{name}",status="200"' in line for line in asked), asked


def damaged(content, rng):
    """The bytes with some of them changed, cut, or doubled."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place, length = rng.integers(len(content)), rng.integers(1, 20)
        kind = rng.integers(4)
        if kind == 0:
            content[place] = rng.integers(256)
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        else:
            content[place : place + 1] = str(rng.integers(-(10**9), 10**9)).encode()
    return bytes(content)


def test_damaged_requests_are_refused(address):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
    buffers = [io.BytesIO() for _ in range(4)]
    for buffer, form in zip(buffers, ("PNG", "JPEG", "TIFF", "GIF")):
        image.save(buffer, form)

    tensor = rng.normal(size=(1, 3, 16, 16)).astype(np.float32)
    sent = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32"}
    as_json = json.dumps({"inputs": [{**sent, "data": np.round(tensor, 1).ravel().tolist()}]}).encode()
    head = json.dumps({"inputs": [{**sent, "parameters": {"binary_data_size": tensor.nbytes}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    boundary = {"Content-Type": "multipart/form-data; boundary=edge"}
    form = b'--edge\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + buffers[0].getvalue()
    requests = [
        *(("/segment", buffer.getvalue(), {}) for buffer in buffers),
        ("/segment", form + b"\r\n--edge--\r\n", boundary),
        ("/v2/models/light/infer", as_json, {}),
        ("/v2/models/light/infer", head + tensor.tobytes(), length),
    ]

    statuses = set()
    with httpx.Client(base_url=address) as client:
        for path, content, headers in requests:
            assert client.post(path, content=content, headers=headers).status_code == 200
            for _ in range(40):
                answer = client.post(path, content=damaged(content, rng), headers=headers)
                statuses.add(answer.status_code)
                assert answer.status_code == 200 or answer.json()["error"]
    assert statuses <= {200, 400, 413}
    assert {200, 400} <= statuses
