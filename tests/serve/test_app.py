# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import DEPLOYMENT, light, make_model, serving

from hmsa.errors import UsageError
from hmsa.serve.app import Limits, make_app

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
LABEL = (PIXELS[..., 0] > 127).astype(np.uint8)


def encoded(pixels=PIXELS, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def shown(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def refused(answer, status, part):
    assert answer.status_code == status, answer.text
    (sentence,) = answer.json().values()
    assert part in sentence


def post(address, content=None, **options):
    return httpx.post(f"{address}/segment", content=encoded() if content is None else content, **options)


class Gate:
    """The network, which waits for `go`."""

    def __init__(self):
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, images):
        self.entered.set()
        assert self.go.wait(20)
        return light(images)


@contextmanager
def busy(**limits):
    """A server whose engine is busy with a first request, until `gate.go` -> its address, the gate."""
    gate = Gate()
    with serving(gate, **limits) as address, ThreadPoolExecutor() as pool:
        gate.go.clear()
        gate.entered.clear()
        first = pool.submit(post, address)
        assert gate.entered.wait(10)
        try:
            yield address, gate, first
        finally:
            gate.go.set()


# --- Images. ---


def test_labels_of_a_body_and_of_a_form(address):
    in_form = httpx.post(f"{address}/segment", files={"any name": ("../../x.png", encoded())}, data={"more": "text"})
    for answer in (post(address), post(address, headers={"content-type": "image/png"}), in_form):
        picture = shown(answer)
        assert picture.mode == "L"
        assert np.array_equal(picture, LABEL)


def test_what_an_image_can_be_answered_with(address):
    color = shown(post(address, params={"output": "color"}))
    assert color.mode == "P"
    assert np.array_equal(color, LABEL)
    colors = np.asarray(color.convert("RGB"))
    assert np.array_equal(colors, np.array(DEPLOYMENT["class_colors"])[LABEL])
    overlay = np.asarray(shown(post(address, params={"output": "overlay"})), int)
    assert np.abs(overlay - (0.6 * PIXELS + 0.4 * colors)).max() <= 1
    confidence = np.asarray(shown(post(address, params={"output": "confidence"})), int)
    assert np.abs(confidence - np.abs(2 * PIXELS[..., 0].astype(int) - 255)).max() <= 1


@pytest.mark.parametrize("op", ["softmax", "none"])
def test_pictures_of_scores_that_are_resized_back(op):
    def scores(images):
        logits = np.stack([-images[:, 0], images[:, 0]], 1) * 5
        return {"logits": logits if op == "none" else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)}

    steps = [{"type": "Resize", "target_size": [100, 80]}, *DEPLOYMENT["transforms"]]
    with serving(scores, changes={"output_op": op, "outputs": [], "transforms": steps}) as address:
        pixels = np.repeat(np.repeat(np.where(LABEL[::8, ::10], 255, 0).astype(np.uint8), 8, 0), 10, 1)
        content = encoded(np.dstack([pixels] * 3))
        found = np.asarray(shown(post(address, content)))
        assert found.shape == (40, 50)
        assert (found == pixels // 255).mean() > 0.9
        confidence = np.asarray(shown(post(address, content, params={"output": "confidence"})))
        assert np.median(confidence) == 255


def test_a_program_that_normalises_itself_is_given_bytes():
    def run(images):
        assert images.dtype == np.uint8
        return {"label": (images[..., 0] > 127).astype(np.int32)}

    changes = {
        "input_dtype": "uint8", "input_layout": "NHWC", "input_shape": [None, None, None, 3], "transforms": [],
        "outputs": [],
    }  # fmt: skip
    with serving(run, changes=changes) as address:
        assert np.array_equal(shown(post(address)), LABEL)
        refused(post(address, params={"output": "confidence"}), 422, "with its confidence")


def test_images_of_one_size_run_together():
    sizes = []

    def counted(images):
        sizes.append(len(images))
        return light(images)

    with serving(counted, max_batch=4, max_wait_ms=2000) as address, ThreadPoolExecutor(4) as pool:
        assert all(shown(answer) for answer in pool.map(lambda _: post(address), range(4)))
        assert sizes == [1, 4]  # the first when it was opened
        metrics = httpx.get(f"{address}/metrics").text
    assert 'hmsa_requests_total{route="/segment",status="200"} 4.0' in metrics
    assert "hmsa_images_total 4.0" in metrics
    assert 'hmsa_batch_size_bucket{le="4.0"} 1.0' in metrics
    assert "hmsa_queue_length 0.0" in metrics
    assert "hmsa_engine_seconds_count 1.0" in metrics


def test_a_network_for_a_fixed_number_of_images_is_given_so_many():
    sizes = []

    def four(images):
        sizes.append(len(images))
        return light(images)

    with serving(four, changes={"input_shape": [4, 3, 40, 50]}, max_batch=2, max_wait_ms=0) as address:
        assert np.array_equal(shown(post(address)), LABEL)
        assert httpx.get(f"{address}/v2/models/light").json()["inputs"][0]["shape"] == [-1, 3, 40, 50]
        for count, status in ((1, 200), (3, 200), (4, 200), (5, 400)):
            images = np.zeros((count, 3, 40, 50), np.float32)
            sent = {"name": "x", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
            answer = httpx.post(f"{address}/v2/models/light/infer", json={"inputs": [sent]})
            assert answer.status_code == status
            if status == 200:
                assert answer.json()["outputs"][0]["shape"] == [count, 40, 50]
        refused(answer, 400, "at most 4 images")
    assert set(sizes) == {4}


def test_an_export_for_larger_images_than_are_allowed_is_told_at_start():
    with pytest.raises(UsageError, match="at most 1999 pixels in all, found one for 2000"):
        make_model(max_pixels=1999, input_shape=[None, 3, 40, 50])
    with pytest.raises(UsageError, match="at most 7999 pixels in all, found one for 8000"):
        make_model(max_pixels=7999, input_shape=[4, 3, 40, 50])


def test_answers_come_without_delay(address):
    with httpx.Client() as client:
        seconds = []
        for _ in range(20):
            started = time.monotonic()
            client.get(f"{address}/v2")
            seconds.append(time.monotonic() - started)
    assert sorted(seconds)[10] < 0.03  # 0.04 where the kernel waits for more to send


# --- What is refused. ---


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side=50_000):
    """A PNG of so many black pixels a side, as its header says."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(10**7)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "part"),
    [
        (b"", 400, "no image format"),
        (b"\x89PNG\r\n\x1a\n", 400, "ends too early"),
        (encoded()[:-20], 400, "ends too early"),
        (encoded(np.zeros((1, 1, 3), np.uint8)), 400, "at least 16 pixels"),
        (encoded(np.zeros((15, 900, 3), np.uint8)), 400, "at least 16 pixels"),
        (bomb(), 413, "too large: its size is 50000x50000"),
        (encoded(np.zeros((1025, 2048, 3), np.uint8)), 413, "too large"),
    ],
)
def test_images_that_are_refused(address, content, status, part):
    refused(post(address, content), status, part)


@pytest.mark.parametrize(
    ("options", "status", "part"),
    [
        ({"params": {"output": "colour"}}, 422, "output: Input should be 'label'"),
        ({"headers": {"content-type": "text/plain"}}, 415, "text/plain"),
        ({"headers": {"content-encoding": "gzip"}}, 415, "content-encoding"),
        ({"headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form"),
        ({"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "found 0"),
    ],
)
def test_requests_that_are_refused(address, options, status, part):
    refused(post(address, **options), status, part)


def test_what_clients_send_is_not_logged(address, caplog):
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\nContent-Transfer-Encoding: secret\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(post(address, form + b"\r\n--x--\r\n", headers=headers), 400, "")
    refused(post(address, b"-secret", headers=headers), 400, "form")
    assert not caplog.records


def test_forms_of_many_files_and_parts(address):
    two = [("image", encoded()), ("image", encoded())]
    refused(httpx.post(f"{address}/segment", files=two), 400, "found 2")
    many = {f"f{number}": "x" for number in range(20)}
    refused(httpx.post(f"{address}/segment", files=two[:1], data=many), 400, "at most 16 parts")


def test_paths_and_methods(address):
    refused(httpx.get(f"{address}/nowhere"), 404, "/nowhere")
    refused(httpx.post(f"{address}/nowhere"), 404, "/nowhere")
    refused(httpx.get(f"{address}/segment"), 405, "GET")
    assert httpx.get(f"{address}/segment").headers["allow"] == "POST"


def test_head_is_get_without_a_body(address):
    for path in ("", "health", "v2/health/ready"):
        answer = raw(address, f"HEAD /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), wait=0.2)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
    assert httpx.head(f"{address}/segment").status_code == 405


@pytest.mark.parametrize(("size", "status"), [(15_000, 200), (17_000, 431), (100_000, 431)])
def test_long_headers(address, size, status):
    assert httpx.get(f"{address}/health", headers={"x": "x" * size}).status_code in (
        status,
        400 if status == 431 else 0,
    )


def test_more_connections_than_files_may_be_open(monkeypatch, capfd):
    monkeypatch.setattr("hmsa.serve.server._most_connections", lambda: 3)
    monkeypatch.setattr("hmsa.serve.server.Protocol._was_told", False)
    with serving() as address, ExitStack() as stack:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(3):
            stack.enter_context(socket.create_connection((host, int(port))))
        for _ in range(5):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{address}/health")
        stack.close()
        time.sleep(0.2)
        assert httpx.get(f"{address}/health").status_code == 200
    assert capfd.readouterr().err.count("warning: 3 connections at a time") == 1


def test_bodies_that_are_too_large():
    with serving(max_mb=0.01) as address:
        refused(post(address, bytes(20_000)), 413, "10485 bytes")
        refused(post(address, iter([bytes(5000)] * 4)), 413, "10485 bytes")  # of a length that is not told
        assert shown(post(address, encoded(np.zeros((20, 20, 3), np.uint8))))


def raw(address, *pieces, wait=0.0):
    """What a server answers to bytes on a connection of their own."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(wait)
        return connection.recv(1 << 16)


def test_lies_about_lengths_and_slow_bodies():
    with serving(timeout=0.5) as address:
        head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: "
        assert b" 408 " in raw(address, head + b"100\r\n\r\nabc")
        assert b" 400 " in raw(address, head + b"3\r\n\r\n" + bytes(100))
        assert b" 400 " in raw(address, head + b"-3\r\n\r\n")
        assert b" 413 " in raw(address, head + b"9" * 18 + b"\r\n\r\n")
        assert b" 408 " in raw(address, head + b"100\r\n\r\n", *[b"x"] * 8, wait=0.1)
        assert b'{"error": ' in raw(address, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000)
        assert b'{"error": ' in raw(address, b"hello\r\n\r\n")
        assert shown(post(address))


def test_a_connection_that_says_nothing_is_closed(monkeypatch):
    monkeypatch.setattr("hmsa.serve.server._IDLE_SECONDS", 0.2)
    with serving() as address:
        started = time.monotonic()
        assert raw(address) == b""
        assert raw(address, b"GET /health HT") == b""
        assert time.monotonic() - started < 5


def test_a_full_server_says_when_to_come_again():
    with busy(max_queue=1) as (address, gate, first):
        answer = post(address)
        refused(answer, 503, "try later")
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{address}/health").json()["inside"] == 1  # the event loop is free
        gate.go.set()
        assert shown(first.result(10))
        assert shown(post(address))


def test_bodies_are_too_much_together():
    with serving(max_mb=0.01) as address, ExitStack() as stack:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 10001\r\n\r\n" + bytes(10_000))
        while httpx.get(f"{address}/health").json()["inside"] < 4:
            time.sleep(0.01)
        time.sleep(0.1)
        answer = post(address, bytes(5000))
        refused(answer, 503, "try later")
        assert int(answer.headers["retry-after"]) >= 1
        stack.close()
        while httpx.get(f"{address}/health").json()["inside"]:
            time.sleep(0.01)
        assert shown(post(address, encoded(np.zeros((20, 20, 3), np.uint8))))


def test_an_answer_that_takes_too_long():
    with busy(timeout=0.3) as (address, gate, first):
        second = post(address, encoded(PIXELS[:20]))
        refused(second, 504, "within 0.3 s")
        refused(first.result(10), 504, "within 0.3 s")
        assert httpx.get(f"{address}/health").json() | {"version": ""} == {
            "status": "ok", "model": "light", "version": "", "inside": 0, "waiting": 1,
        }  # fmt: skip
        gate.go.set()
        assert shown(post(address))


def test_a_failure_of_the_engine_is_told_without_details(capfd):
    def fails(images):
        if len(fails.seen) > 0:
            raise RuntimeError("secret")
        fails.seen.append(1)
        return light(images)

    fails.seen = []
    with serving(fails) as address:
        answer = post(address)
        refused(answer, 500, "its log says why")
        assert "secret" not in answer.text
    assert "secret" in capfd.readouterr().err


def test_an_engine_that_has_ended_is_told():
    def ends(images):
        if images.max() > 0:
            raise SystemExit
        return light(images)

    with serving(ends, timeout=2) as address:
        refused(post(address), 504, "within 2 s")
        refused(post(address), 503, "the engine has ended")
        for path in ("health", "v2/health/live", "v2/health/ready", "v2/models/light/ready"):
            refused(httpx.get(f"{address}/{path}"), 503, "the engine has ended")


# --- Pages and headers. ---


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:99", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("street.example", 200), ("", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("127.0.0.1.evil.example", 421), ("[::2]", 421),
        ("localhost:80:80", 421), ("\xe9", 421),
    ],
)  # fmt: skip
def test_a_host_that_is_not_this_server(host, status):
    app = make_app(make_model(), Limits(), allowed_hosts=("street.example", "localhost", "127.0.0.1", "[::1]"))
    answer = TestClient(app).get("/health", headers={"host": host.encode("latin-1")})
    app.state.server.close()
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 421:
        refused(answer, 421, "expected a request for street.example or localhost")


@pytest.mark.parametrize(("name", "text"), [("headers.json", "[]"), ("headers.json", "{"), ("other", "")])
def test_a_page_that_was_not_built(name, text, tmp_path):
    (tmp_path / "index.html").write_text("page")
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"headers\.json"):
        make_app(make_model(), Limits(), web=tmp_path)


def test_a_small_page_and_headers_of_every_answer(address):
    page = httpx.get(f"{address}/")
    assert "light" in page.text
    assert 'formaction="/segment?output=overlay"' in page.text
    assert 'target="answer"' in page.text
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    for answer in (page, post(address), httpx.get(f"{address}/nowhere")):
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers


def test_a_built_page_and_what_it_needs_of_the_model(tmp_path):
    web, folder = tmp_path / "web", tmp_path / "export"
    (web / "assets").mkdir(parents=True)
    folder.mkdir()
    (web / "index.html").write_text("built")
    (web / "headers.json").write_text('{"Content-Security-Policy": "of the page", "X-Own": "1"}')
    (web / "assets/ort.wasm").write_bytes(b"\0asm")
    (web / "model").mkdir()
    (web / "model/other.onnx").write_text("that the page was built with")
    for name in ("deploy.yaml", "model.onnx", "model.pdiparams", "secret"):
        (folder / name).write_text(name)
    (web / "link").symlink_to(folder / "secret")

    formats = [
        {"format": "paddle", "precision": "fp32", "files": ["model.pdmodel", "model.pdiparams"]},
        {"format": "onnx", "precision": "fp32", "files": ["model.onnx"]},
    ]
    with serving(folder=folder, web=web, changes={"formats": formats}) as address:
        page = httpx.get(f"{address}/")
        assert page.text == "built"
        assert (page.headers["content-security-policy"], page.headers["x-own"]) == ("of the page", "1")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in httpx.get(f"{address}/health").headers["content-security-policy"]
        assert httpx.get(f"{address}/assets/ort.wasm").headers["content-type"] == "application/wasm"
        assert httpx.get(f"{address}/model/model.onnx").text == "model.onnx"
        assert httpx.get(f"{address}/model/deploy.yaml").text == "deploy.yaml"
        for path in (
            "model/model.pdiparams",
            "model/secret",
            "model/other.onnx",
            "link",
            "model/../secret",
            "%2e%2e/export/secret",
        ):
            assert b" 404 " in raw(address, f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), path
