# SPDX-License-Identifier: Apache-2.0
"""`hmsa serve` as a person starts it, on a small network."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from PIL import Image

from hmsa.commands.serve import make_parser
from hmsa.errors import UsageError
from hmsa.serve.server import Protocol, Service, serve

ROOT = Path(__file__).parents[2]
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def export(make_tiny_network, tmp_path_factory):
    """The folder of an export."""
    from hmsa.deploy.export import ExportOptions, export

    folder = tmp_path_factory.mktemp("served") / "tiny"
    export(make_tiny_network(), folder, ExportOptions(output_op="argmax", transforms=[NORMALIZE], with_confidence=True))
    return folder


@contextmanager
def started(folder, *flags):
    """The command -> its process and its address."""
    command = [sys.executable, "-m", "hmsa", "serve", str(folder), "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving "), process.stderr.read()
            yield process, line.split(" on ")[1].split()[0]
        finally:
            process.kill()


def ended(process, number=signal.SIGTERM):
    """Its status after a signal, and what it said."""
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ten_files():
    """Images as people have them: odd sizes, upright, small, turned by EXIF, grey, of a palette, of 16 bits ..."""
    rng = np.random.default_rng(0)

    def drawn(height, width):
        patches = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)

    turned = Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(rng.integers(0, 1 << 16, (40, 60), np.uint16))
    return [
        encoded(drawn(64, 96)),
        encoded(drawn(75, 129)),
        encoded(drawn(128, 72)),
        encoded(drawn(20, 20)),
        encoded(drawn(64, 96), "JPEG", exif=turned),
        encoded(drawn(64, 96).convert("L")),
        encoded(drawn(64, 96).convert("P")),
        encoded(sixteen),
        encoded(drawn(64, 96).convert("RGBA")),
        encoded(drawn(33, 47), "WEBP", lossless=True),
    ]


def label_of(address, content):
    answer = httpx.post(f"{address}/segment", content=content, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_an_address_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"expected an address that is free, found 127.0.0.1:{port}"):
            serve(Service(tmp_path), "127.0.0.1", port)
    with pytest.raises(UsageError, match="expected a host"):
        serve(Service(tmp_path), "no such host", 0)


def test_precisions_of_files_and_of_engines():
    for words in (["--precision", "fp16"], ["--engine", "openvino", "--precision", "bf16"]):
        assert make_parser().parse_args(["export", *words]).precision == words[-1]


@pytest.mark.parametrize(
    ("host", "named", "expected"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.1", ("Street.example",), {"street.example", "localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0", (), set()),
        ("0.0.0.0", ("a",), {"a", "0.0.0.0", "localhost", "127.0.0.1", "[::1]"}),
    ],
)
def test_hosts_are_checked_where_one_machine_is_served_or_some_are_named(host, named, expected, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr("hmsa.serve.server._serve_here", lambda service, listener, stop, ready: served.append(service))
    serve(Service(tmp_path, "paddle", allowed_hosts=named), host, 0)
    assert set(served[0].allowed_hosts) == expected


def test_a_connection_that_asks_is_not_taken_for_a_silent_one():
    class Cycle:
        response_complete = True

    connection = Protocol.__new__(Protocol)
    connection._seen, connection.loop, connection.transport = None, Mock(), Mock()
    connection.transport.get_write_buffer_size.return_value = 0
    for _ in range(20):
        for _ in range(2):  # the first is gone, and its address free, when the next look comes
            connection.cycle = Cycle()
        connection._look()
    connection.transport.abort.assert_not_called()
    connection._look()
    connection.transport.abort.assert_called_once()


def test_what_waited_in_a_process_that_ended_is_not_counted(tmp_path):
    code = """
import os
from hmsa.serve.metrics import Metrics, forget

def waiting(count):
    metrics = Metrics()
    metrics.watch_queue(lambda: count)
    return [line for line in metrics.text().decode().splitlines() if line.startswith("hmsa_queue_length")]

pid = os.fork()
if pid == 0:
    waiting(7)
    os._exit(0)
os.waitpid(pid, 0)
first = waiting(3)
forget(pid)
print(first, waiting(3))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert said == "['hmsa_queue_length 10.0'] ['hmsa_queue_length 3.0']\n"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["paddle", "onnxruntime", "openvino"])
def test_labels_are_those_of_predict(engine, make_tiny_network, tmp_path):
    """Of ten images, by what predict.py does: read, normalise, network, best class."""
    from importlib.util import find_spec

    from hmsa.datasets.dataset import transformed_image
    from hmsa.datasets.given import pixels_of
    from hmsa.datasets.transforms import Normalize
    from hmsa.deploy.engines import ENGINES
    from hmsa.deploy.export import ExportOptions, export
    from hmsa.deploy.formats import can_write_onnx, rows_of
    from hmsa.engine.predict import predicted
    from hmsa.inference.averaging import InferenceOptions

    if not all(map(find_spec, ENGINES[engine].packages)) or (engine == "onnxruntime" and not can_write_onnx()):
        pytest.skip(f"pip install .[onnx,openvino], with Paddle 3, gives what {engine} needs")
    network = make_tiny_network()
    rows = rows_of(["onnx"] if engine == "onnxruntime" else [], ["fp32"])
    export(network, tmp_path / "tiny", ExportOptions(output_op="argmax", transforms=[NORMALIZE], formats=rows))
    steps = [Normalize(mean=NORMALIZE["mean"], std=NORMALIZE["std"])]

    def logits(images):
        return network(images)["joint"]

    equal = total = 0
    with started(tmp_path / "tiny", "--engine", engine) as (process, address):
        for content in ten_files():
            image = pixels_of(content, "image", None)
            sample = transformed_image(image, steps, "")
            expected = predicted(logits, sample, image.shape[:2], InferenceOptions()).label
            found = label_of(address, content)
            assert found.shape == image.shape[:2]
            equal, total = equal + (found == expected).sum(), total + found.size
        assert ended(process) == (0, "\nanswering what has been asked; again to quit at once\ndone\n")
    assert equal / total >= 0.9999


@pytest.mark.slow
def test_sigterm_answers_what_was_asked(export):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)))
    with started(export, "--max_batch", "1") as (process, address), ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(label_of, address, content) for _ in range(6)]
        while httpx.get(f"{address}/health").json()["inside"] < 6 and not asked[0].done():
            time.sleep(0.01)
        time.sleep(0.1)
        assert not all(answer.done() for answer in asked)
        status, said = ended(process)
        assert all(answer.result().shape == (700, 900) for answer in asked)
        assert (status, said.splitlines()[-1]) == (0, "done")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_at_once(workers, export):
    with started(export, "--timeout", "50", "--workers", workers) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        place = host, int(port)
        with socket.create_connection(place) as connection, socket.create_connection(place, timeout=10) as silent:
            connection.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert process.poll() is None  # a request is being read
            assert silent.recv(1) == b""  # nobody can ask whether it is ready
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place)
            assert ended(process, signal.SIGINT)[0] == -signal.SIGINT


def workers_of(process):
    """The ids of the processes that serve."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_asked_to_end_while_it_opens_the_export(workers, export):
    """As soon as Paddle is loaded, whose handlers would write a report, and at times never end."""
    command = [sys.executable, "-m", "hmsa", "serve", str(export), "--port", "0", "--workers", workers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        end = time.monotonic() + 30
        loaded = []
        while not loaded and time.monotonic() < end:
            time.sleep(0.01)
            those = workers_of(process) if workers == "2" else [process.pid]
            loaded = [pid for pid in those if b"libpaddle" in Path(f"/proc/{pid}/maps").read_bytes()]
        status, said = ended(process)
        assert loaded and "SIGTERM (" not in said
        assert (status, said.splitlines()[-1]) in ((0, "done"), (128 + signal.SIGTERM, "ended by SIGTERM"))


@pytest.mark.slow
def test_several_processes_share_the_work(export):
    content = ten_files()[0]
    with started(export, "--workers", "2") as (process, address):
        with ThreadPoolExecutor(8) as pool:
            labels = list(pool.map(lambda _: label_of(address, content), range(24)))
        assert all(np.array_equal(label, labels[0]) for label in labels)
        metrics = httpx.get(f"{address}/metrics").text
        assert 'hmsa_requests_total{route="/segment",status="200"} 24.0' in metrics

        workers = workers_of(process)
        assert len(workers) == 2
        os.kill(int(workers[0]), signal.SIGKILL)
        for _ in range(20):
            assert np.array_equal(label_of(address, content), labels[0])
            time.sleep(0.05)
        status, said = ended(process)
        assert status == 0
        assert said.count("answering what has been asked") == 1
        assert "warning: a process ended with -9; another is started" in said


@pytest.mark.slow
def test_several_processes_that_cannot_open_the_export(tmp_path):
    command = [sys.executable, "-m", "hmsa", "serve", str(tmp_path), "--port", "0", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert "expected the description of an exported model" in done.stderr
    assert "Traceback" not in done.stderr
