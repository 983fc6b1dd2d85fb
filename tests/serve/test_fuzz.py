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


ODD = [
    None, True, -1, 0, 2**31 - 1, 10**4000, float("inf"), "", "\ud800", "\0\n\x1b[0m", "x" * 10_000, [], [[]], {},
    {"\ud800": {}}, {"binary_data_size": [[[[]]]]},
]  # fmt: skip


def test_odd_values_in_every_place_are_refused(address):
    def places(value, path=()):
        yield path
        if isinstance(value, dict):
            for key, part in value.items():
                yield from places(part, (*path, key))
        elif isinstance(value, list):
            yield from places(value[0], (*path, 0))

    def put(value, path, odd):
        if not path:
            return odd
        parts = {**value} if isinstance(value, dict) else [*value]
        parts[path[0]] = put(value[path[0]], path[1:], odd)
        return parts

    given = {"name": "x", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0] * 768}
    as_bytes = {**given, "data": None, "parameters": {"binary_data_size": 3072}}
    wanted = {"id": "1", "outputs": [{"name": "label", "parameters": {"binary_data": True}}], "parameters": {"a": 1}}
    odd_shapes = [[0, *[2**31 - 1] * 3], [2**31 - 1] * 8, [1, 2**40, 0], [0] * 8]
    with httpx.Client(base_url=address) as client:

        def post(content, path="/v2/models/light/infer", **headers):
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code in (200, 400, 413, 415), (answer.text, content[:500], headers)
            assert answer.content.startswith(b"{") or answer.status_code == 200

        for whole in ({**wanted, "inputs": [given]}, {**wanted, "inputs": [as_bytes]}):
            bodies = [put(whole, path, odd) for path in places(whole) for odd in ODD]
            for body in bodies + [put(whole, ("inputs", 0, "shape"), shape) for shape in odd_shapes]:
                post(json.dumps(body).encode())
        form = b"multipart/form-data; boundary=\xe9"
        for odd in (b"", b"0" * 5000, b"9" * 5000, b"-0", b"1.0", b"\xb2", b"\xff", form):
            for name in ("Inference-Header-Content-Length", "Content-Type", "Content-Encoding"):
                post(b"{}", **{name: odd})
                post(b"--x\r\n", "/segment", **{name: odd})
        for depth in (40, 400, 900, 980, 1100):
            nested = b"[" * depth + b"]" * depth
            post(json.dumps({"inputs": [given]}).encode().replace(b'"data":', b'"data": %s, "other":' % nested))
            post(json.dumps({"inputs": [as_bytes]}).encode().replace(b"3072", nested))
