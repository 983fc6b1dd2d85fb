# SPDX-License-Identifier: Apache-2.0
"""Against a server of this machine that answers well and badly."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hmsa.errors import DataError, UsageError
from hmsa.inference import cache
from hmsa.system.files import sha256
from hmsa.weights import downloads
from hmsa.weights.downloads import downloaded, web_address
from hmsa.weights.files import read_weights, write_weights
from hmsa.weights.loading import load_pretrained, weight_file

ROOT = Path(__file__).parents[2]
ARRAYS = {"backbone.conv1.weight": np.random.default_rng(0).normal(size=(64, 3, 3, 3)).astype(np.float32)}
BY_HAND = "download the file by hand and give its path instead"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of downloads."""
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return tmp_path / "cache/downloads"


class Server(ThreadingHTTPServer):
    """Answers GET as `answers` says: bytes, or a function of the request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients hang up in these tests."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path)
        if callable(answer):
            answer(self)
        elif answer is None:
            self.send_error(404)
        else:
            self.begin(len(answer))
            self.wfile.write(answer)

    def begin(self, length, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def weights(suffix=".pdparams", arrays=ARRAYS):
    """What a weight file or an archive with one holds, as PaddleSeg packs it."""
    path = Path(os.environ["HMSA_CACHE"]).parent / f"made{suffix if suffix.count('.') == 1 else '.pdparams'}"
    if suffix not in (".tar.gz", ".zip"):
        write_weights(path, arrays)
        return path.read_bytes()
    inside = weights(arrays=arrays)
    packed = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("hrnet/model.pdparams", inside)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("hrnet/model.pdparams")
            member.size = len(inside)
            archive.addfile(member, io.BytesIO(inside))
    return packed.getvalue()


def redirect(to):
    return lambda request: request.begin(0, 302, Location=to)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors", ".tar.gz", ".zip"])
def test_an_address_is_downloaded_once(server, kept, suffix, capsys):
    address = f"{server.address}/dygraph/w48{suffix}?x=1"
    server.answers[f"/dygraph/w48{suffix}?x=1"] = content = weights(suffix)
    path = weight_file(address)
    assert path.parent == kept and path.name.endswith(f"w48{suffix}")
    assert path.read_bytes() == content
    np.testing.assert_equal(read_weights(path), ARRAYS)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"downloading {address}\n")
    assert weight_file(address) == path
    assert capsys.readouterr().err == ""
    assert len(server.asked) == 1
    assert files(kept) == [path.name]


def test_other_addresses_are_other_files(server):
    for name in ("a/model.pdparams", "b/model.pdparams"):
        server.answers[f"/{name}"] = weights(arrays={name: np.ones(1)})
        assert list(read_weights(weight_file(f"{server.address}/{name}"))) == [name]


def test_it_starts_training(server, make_small_network):
    server.answers["/hrnet.tar.gz"] = weights(".tar.gz")
    network = make_small_network()
    report = load_pretrained(network, f"{server.address}/hrnet.tar.gz")
    assert report.startswith(f"{server.address}/hrnet.tar.gz: loaded 1 of 417 tensors; not in the file: backbone.bn1")
    np.testing.assert_array_equal(network.backbone.conv1.weight.numpy(), *ARRAYS.values())


def test_the_hash_behind_an_address(server, kept):
    server.answers["/w.pdparams"] = content = weights()
    (kept.parent.parent / "w").write_bytes(content)
    digest = sha256(kept.parent.parent / "w")
    address = f"{server.address}/w.pdparams"
    wrong = f"{address}#sha256={'0' * 64}"
    for _ in range(2):  # without the file, and with it
        with pytest.raises(DataError) as caught:
            downloaded(wrong)
        assert str(caught.value).startswith(f"{wrong}: expected a file with this SHA-256, found one with {digest}; ")
        assert files(kept) == [] or len(files(kept)) == 1
        assert downloaded(f"{address}#sha256={digest.upper()}").read_bytes() == content
    assert len(server.asked) == 3
    assert downloaded(address) == downloaded(f"{address}#sha256={digest}")
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://example.org/w.pdparams",
        "https://",
        "https:///w.pdparams",
        "https://example.org",
        "https://example.org/folder/",
        "https://example.org/w.pdparams#sha256=abc",
        "https://example.org/w.pdparams#md5=abc",
    ],
)
def test_what_cannot_be_an_address_of_weights(kept, address):
    with pytest.raises(UsageError) as caught:
        weight_file(address)
    assert str(caught.value).startswith(f"{address}: expected a path or the http(s) address of a weight file, ")
    assert not kept.exists()


def test_paths_and_addresses_are_told_apart(tmp_path):
    for path in ("a/b.pdparams", "/a/b", "a:b", "C:/a.pdparams", "C:\\a.pdparams", "./http:/a", "a/http://b/c"):
        assert web_address(path) is None
    assert web_address("HTTPS://example.org/a//b") == "HTTPS://example.org/a//b"
    assert web_address(Path("https://example.org/a.pdparams")) == "https://example.org/a.pdparams"
    (tmp_path / "model.pdparams").touch()
    assert weight_file(str(tmp_path)) == tmp_path / "model.pdparams"


def breaks_off(request):
    request.begin(len(weights()) + 1)
    request.wfile.write(weights())


def breaks_off_in_pieces(request):
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"ff\r\nabc")


def is_silent(request):
    request.begin(1000)
    time.sleep(2)


def is_a_page(request):
    request.begin(12)
    request.wfile.write(b"<html>log in")


BAD_ANSWERS = {
    "missing": (None, f"the server answers 404 Not Found; {BY_HAND}"),
    "breaks_off": (breaks_off, BY_HAND),
    "breaks_off_in_pieces": (breaks_off_in_pieces, f"the connection broke off; {BY_HAND}"),
    "is_silent": (is_silent, f"the server does not answer in time; {BY_HAND}"),
    "is_a_page": (is_a_page, "it is damaged or of another kind; get it again from a place you trust"),
    "half_an_archive": (lambda r: (r.begin(99), r.wfile.write(weights(".tar.gz")[:99])), "it is damaged or of another"),
    "to_a_file": (
        redirect("file:///etc/passwd"),
        "it leads to what is not encrypted or no web address (No connection adapters were found for 'file:///etc/p",
    ),
    "to_nowhere": (
        redirect("http://127.0.0.1:1/w.pdparams"),
        f"cannot be reached (is this machine offline?); {BY_HAND}",
    ),
    "in_circles": (redirect("/in_circles"), "it leads from one address to the next without end"),
    "odd": (redirect("http://[::1"), BY_HAND),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_a_bad_answer_is_a_sentence_and_nothing_is_kept(server, kept, what, monkeypatch):
    answer, sentence = BAD_ANSWERS[what]
    server.answers[f"/{what}"] = answer
    address = f"{server.address}/{what}"
    with pytest.raises(DataError) as caught, monkeypatch.context() as patch:
        patch.setattr(downloads, "SILENT_SECONDS", 0.5 if what == "is_silent" else 60)
        downloaded(address)
    message = str(caught.value)
    assert message.startswith(f"{address}: expected ") and sentence in message
    assert message.isprintable() and len(message) < 400
    assert files(kept) == []
    server.answers[f"/{what}"] = weights()
    assert downloaded(address).read_bytes() == weights()


def test_offline():
    address = "http://127.0.0.1:1/hrnet_w48.tar.gz"
    with pytest.raises(DataError) as caught:
        weight_file(address)
    reason = "the server cannot be reached (is this machine offline?)"
    assert str(caught.value) == f"{address}: expected to download the file, but {reason}; {BY_HAND}"


def test_redirections_are_followed(server):
    server.answers |= {"/old": redirect("/newer"), "/newer": redirect(f"{server.address}/new"), "/new": weights()}
    assert downloaded(f"{server.address}/old").read_bytes() == weights()
    assert downloaded(f"{server.address}/old").name.endswith("-old")


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate")
def test_no_redirection_gives_up_encryption(server, tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key -out cert -addext"
    subprocess.run([*command.split(), "subjectAltName=DNS:localhost"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
    with Server() as safe:
        safe.socket = context.wrap_socket(safe.socket, server_side=True)
        safe.answers = {"/good": weights(), "/bad": redirect(f"{server.address}/w")}
        threading.Thread(target=safe.serve_forever, daemon=True).start()
        address = f"https://localhost:{safe.server_port}"
        assert downloaded(f"{address}/good").read_bytes() == weights()
        with pytest.raises(DataError, match=f"not encrypted or no web address .*'{server.address}/w'"):
            downloaded(f"{address}/bad")
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(DataError, match="the server's certificate cannot be verified"):
            downloaded(f"{address}/other")
        safe.shutdown()
    assert server.asked == []


def start(address):
    code = f"from hmsa.weights.downloads import downloaded; print(downloaded({address!r}))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_of_many_processes_one_downloads(server):
    def slowly(request):
        request.begin(len(content))
        for start in range(0, len(content), 1000):
            request.wfile.write(content[start : start + 1000])
            time.sleep(0.2)

    content = weights()
    server.answers["/w.pdparams"] = slowly
    ranks = [start(f"{server.address}/w.pdparams") for _ in range(3)]
    said = {rank.communicate(timeout=60)[0] for rank in ranks}
    assert len(said) == 1 and Path(said.pop().strip()).read_bytes() == content
    assert server.asked == ["/w.pdparams"]


def test_what_a_killed_process_left_is_not_taken_for_whole(server, kept):
    content = weights()
    half_sent = threading.Event()

    def half(request):
        request.begin(len(content))
        request.wfile.write(content[: len(content) // 2])
        request.wfile.flush()
        half_sent.set()
        time.sleep(30)

    server.answers["/w.pdparams"] = half
    process = start(f"{server.address}/w.pdparams")
    assert half_sent.wait(60)
    while not files(kept):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [name[0] for name in files(kept)] == ["."]
    server.answers["/w.pdparams"] = content
    path = downloaded(f"{server.address}/w.pdparams")
    assert path.read_bytes() == content
    assert files(kept) == [path.name]


def test_what_changed_on_the_disk_is_downloaded_anew(server, kept):
    server.answers["/w.pdparams"] = weights()
    path = downloaded(f"{server.address}/w.pdparams")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert downloaded(f"{server.address}/w.pdparams").read_bytes() == weights()
    assert len(server.asked) == 2 and files(kept) == [path.name]


def test_new_inference_programs_leave_downloads_alone(server):
    server.answers["/w.pdparams"] = weights()
    path = downloaded(f"{server.address}/w.pdparams")
    os.utime(path.parent, (0, 0))
    for index in range(cache.MAX_KEPT + 2):
        cache.entry(index, lambda folder: (folder / "program").touch())
    assert path.read_bytes() == weights()


def test_a_cache_that_cannot_be_used(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(DataError) as caught:
        downloaded(f"{server.address}/w.pdparams")
    assert re.fullmatch(
        rf"{server.address}/w\.pdparams: expected to keep the download, but: .*file/cache.*; set HMSA_CACHE to .*, or "
        rf"{BY_HAND}",
        str(caught.value),
    )
    assert server.asked == []


def test_a_tool_takes_an_address(server, tmp_path):
    server.answers["/w.tar.gz"] = weights(".tar.gz")
    address, target = f"{server.address}/w.tar.gz", tmp_path / "w.safetensors"
    command = [sys.executable, ROOT / "tools/convert_weights.py", "--output", target, "--input"]
    run = subprocess.run([*command, address], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, f"downloading {address}\n")
    np.testing.assert_equal(read_weights(target), ARRAYS)
    run = subprocess.run([*command, f"{server.address}/gone"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[1].startswith(
        f"error: {server.address}/gone: expected to download the file, but the"
    )
