# SPDX-License-Identifier: Apache-2.0
"""Processes that serve an export: the socket, the connections, the signals."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from multiprocessing import connection
from pathlib import Path
from typing import Any, Optional

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hmsa.errors import DataError, HmsaError, UsageError
from hmsa.serve.app import MAX_HEADERS, Limits, make_app
from hmsa.serve.metrics import SHARED_FOLDER, forget
from hmsa.system.environment import cores
from hmsa.system.signals import StopRequest, terminations_wait

DRAINING = "answering what has been asked; again to quit at once"

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_BACKLOG = 128  # connections that wait to be accepted
_ACCEPTED_AT_A_TIME = 1  # else asyncio accepts more than there are files for, before it says so
_FILES = 24  # that a process may open besides its connections: those that are accepted at a time, and what it sends
_PATIENCE = 15  # seconds beside those of the requests that a process may take to end
_IDLE_SECONDS = 10  # after which a connection that sends no request, or takes no answer, is closed


@dataclass(frozen=True)
class Service:
    """What is served, and how; picklable.

    Attributes:
        folder: of the export.
        engine, precision: see `hmsa.deploy.engines.open_export`; None for the engine that is `preferred`.
        threads: that the engine of a process computes with; None for its share of the cores.
        workers: processes, each with the model.
        web: of a built page; None for that of the sources, if it was built and the export has the ONNX file that it
            runs, else for a small page.
        allowed_hosts: names by which clients may ask for the server; with any, and where the server listens for this
            machine alone, also those of this machine; else all.
    """

    folder: Path
    engine: Optional[str] = None
    precision: str = "fp32"
    threads: Optional[int] = None
    workers: int = 1
    web: Optional[Path] = None
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """Of the model: that of its folder."""
        return self.folder.resolve().name or "model"


def serve(service: Service, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; then answer what has been asked, and return. A second signal ends at once.

    Args:
        port: 0 for any that is free.
        say: told when clients can come.

    Raises:
        UsageError, DataError: the address or the export cannot be used.
    """
    with bound(host, port) as listener, StopRequest(DRAINING) as stop:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if service.allowed_hosts or ip_address(listener.getsockname()[0]).is_loopback:
            names = dict.fromkeys(name.lower() for name in (*service.allowed_hosts, host, *_LOCAL_HOSTS))
            service = replace(service, allowed_hosts=tuple(names))
        service = _with_engine(service)
        told = f"serving {service.name} ({service.engine}, {service.precision}) on {address}"
        if service.workers == 1:
            _serve_here(service, listener, stop, lambda: say(told))
        else:
            _serve_in_processes(service, listener, stop, lambda: say(f"{told} by {service.workers} processes"))


def _with_engine(service: Service) -> Service:
    """The same, with the engine that is preferred if none is named."""
    from hmsa.deploy.engines import preferred
    from hmsa.deploy.runtime import read_deployment

    if service.engine:
        return service
    return replace(service, engine=preferred(read_deployment(service.folder), service.precision))


def opened(service: Service) -> FastAPI:
    """The server's application, with the export open in its engine; also for other servers of ASGI."""
    from hmsa.deploy.engines import open_export
    from hmsa.serve import pages
    from hmsa.serve.model import ServedModel

    service = _with_engine(service)
    threads = service.threads or max(1, cores() // service.workers)
    assert service.engine
    session = open_export(service.folder, service.engine, service.precision, threads)
    model = ServedModel(
        session,
        session.deployment,
        name=service.name,
        platform=f"hmsa_{service.engine}",
        max_pixels=service.limits.max_pixels,
    )
    has_onnx = any(entry.format == "onnx" for entry in session.deployment.formats)
    web = service.web or (pages.built_page() if has_onnx else None)
    return make_app(model, service.limits, folder=service.folder, web=web, allowed_hosts=service.allowed_hosts)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. UsageError if there can be none."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends without delay on TCP's sockets alone, by this number: else answers wait 40 ms.
        listener = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UsageError(f"expected a host to listen on, found {host}: {error.strerror}") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"expected an address that is free, found {host}:{port}: {reason}") from error
        yield listener


# --- One process. ---


def _serve_here(service: Service, listener: socket.socket, stop: StopRequest, ready: Callable[[], None]) -> None:
    app = opened(service)
    try:
        make_server(app, service.limits.timeout, stop, ready).run(sockets=[listener])
    finally:
        app.state.server.close()


def make_server(app: FastAPI, timeout: float, stop: StopRequest, ready: Callable[[], None]) -> Server:
    """What connects clients to an application; to be run with a socket.

    Args:
        timeout: seconds that a request may take.
        stop, ready: see `Server`.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(timeout) + 5,
        backlog=_ACCEPTED_AT_A_TIME,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    return Server(config, stop, ready)


class Server(uvicorn.Server):
    """A server that ends when `stop` is true.

    Args:
        ready: called when clients can come.
    """

    def __init__(self, config: uvicorn.Config, stop: StopRequest, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop, self._ready = stop, ready

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        """As in the base class."""
        Protocol.max_connections = _most_connections()
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)  # which asyncio sets to as many as it accepts at a time
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to `StopRequest`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        return bool(self._stop) or await super().on_tick(counter)


def _most_connections() -> int:
    """As many as this process may have files open, besides those that it has and needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, limit - len(list(Path("/dev/fd").iterdir())) - _FILES)


class Protocol(H11Protocol):
    """uvicorn's connection, for which a client's silence is no reason to stay open, and whose errors are JSON.

    Attributes:
        max_connections: at a time; more are closed at once, which is told the first time.
    """

    max_connections = sys.maxsize
    _was_told = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As in the base class."""
        super().connection_made(transport)
        self._seen: Any = None
        self._next_look: Any = None
        self._look()
        if len(self.connections) > self.max_connections:
            if not Protocol._was_told:
                Protocol._was_told = True
                print(
                    f"warning: {self.max_connections} connections at a time are as many as this process may have "
                    "(ulimit -n); others are closed",
                    file=sys.stderr,
                    flush=True,
                )
            transport.abort()

    def _look(self) -> None:
        """Close, if a whole interval went by between two requests, or without a byte of the answer being taken."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        now = (self.cycle, is_waiting, unsent)  # the object is kept: the address of one that is gone comes again
        if now == self._seen and (is_waiting or unsent):
            self.transport.abort()
            return
        self._seen = now
        self._next_look = self.loop.call_later(_IDLE_SECONDS, self._look)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """As in the base class."""
        super().connection_lost(exc)
        self._next_look.cancel()

    def send_400_response(self, msg: str) -> None:
        """As in the base class, but that it is JSON."""
        sentence = f"expected a request in HTTP/1.1, with headers of at most {MAX_HEADERS} bytes, found something else"
        content = json.dumps({"error": sentence})
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self.transport.write(f"{head}{content}".encode())
        self.transport.close()


# --- Several processes. ---


def _serve_in_processes(
    service: Service, listener: socket.socket, stop: StopRequest, ready: Callable[[], None]
) -> None:
    """Serve in processes that share the socket; one that dies is replaced, unless it never was ready."""
    context = multiprocessing.get_context("spawn")
    opened_ones = context.Semaphore(0)
    processes: list[Any] = []

    def start() -> None:
        process = context.Process(target=_worker, args=(service, listener, opened_ones))
        with terminations_wait():  # in that process, too, until it can hear them
            process.start()
        processes.append(process)

    folder = os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="hmsa-serve-")
    try:
        for _ in range(service.workers):
            start()
        count = 0
        while not stop:
            connection.wait([process.sentinel for process in processes], timeout=0.1)
            while opened_ones.acquire(block=False):
                count += 1
                if count == service.workers:
                    ready()
            for process in [process for process in processes if not process.is_alive()]:
                processes.remove(process)
                forget(process.pid)
                if count < service.workers:
                    raise DataError("expected every process to open the export, but one ended: see above")
                print(f"warning: a process ended with {process.exitcode}; another is started", file=sys.stderr)
                time.sleep(1)
                start()
    finally:
        listener.close()  # else clients would come, and wait for nobody, while the processes end
        for process in processes:
            process.terminate()
        last = time.monotonic() + service.limits.timeout + _PATIENCE
        for process in processes:
            process.join(max(0, last - time.monotonic()))
            if process.is_alive():
                print("warning: a process did not end, and is killed", file=sys.stderr)
                process.kill()
                process.join()
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ[SHARED_FOLDER]


def _worker(service: Service, listener: socket.socket, opened_ones: Any) -> None:
    from hmsa.system.environment import prepare

    os.setsid()  # a terminal's Ctrl-C is for the first process, which tells the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    try:
        with ExitStack() as stack:
            with terminations_wait():  # as they have since it was started
                stop = stack.enter_context(StopRequest(""))  # the first process tells of it
            _serve_here(service, listener, stop, opened_ones.release)
    except HmsaError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
