# SPDX-License-Identifier: Apache-2.0
"""How a rank that fails or dies stops all others, on every machine, and why is said where a person looks.

Left to the collective operations, the others would wait for a dead rank, or end in an error of their own connections
that hides the cause. So every rank has a TCP connection to the main one, watched by a thread, from its first moment on:
before Paddle is loaded, and before the ranks meet, which Paddle does while it holds the interpreter's lock. A rank that
fails sends its reason; one that is killed can send nothing, but its connection closes. Either way the main rank prints
the reason, passes it on, and every process ends. A rank that is merely busy or waits for its disk keeps its connection:
once all have started there is no time-out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
from typing import NoReturn, Optional

_DONE, _HERE, _ALL_HERE, _FAILED = b"D", b"H", b"A", b"F"
_HELLO = struct.Struct("<16sI64s")  # job, rank, host
_LENGTH = struct.Struct("<I")  # of the message that follows
START_SECONDS = 40  # the launchers start all ranks at once, and nothing slow comes before this
_GRACE_SECONDS = 5
_LINGER_SECONDS = 3  # so that the launcher finds the rank that failed ended first, and shows the end of its log


class Lifeline:
    """This rank's connection to the main one; on the main rank, those to all others.

    Args:
        rank: this process among `world_size`; 0 is the main one.
        address: host and port of the main rank, as the others reach it.
        job: what the ranks of this job know alike, to tell others' connections from theirs.
    """

    def __init__(self, *, rank: int, world_size: int, address: tuple[str, int], job: str) -> None:
        self._rank = rank
        self._world_size = world_size
        self._address = address
        self._job = hashlib.md5(job.encode(), usedforsecurity=False).digest()
        self._launcher = os.getppid()
        self._deadline = time.monotonic() + START_SECONDS
        self._peers: dict[socket.socket, str] = {}
        self._here = 0  # ranks that wait in `meet`, on the main one
        self._sending = threading.Lock()  # also of `_peers` and `_here`
        self._over = False  # this process ends by itself
        self._reason = ""  # why all end once all have started
        self._all_started = threading.Event()
        self._all_here = threading.Event()
        threading.Thread(target=self._serve if rank == 0 else self._follow, name="lifeline", daemon=True).start()

    def meet(self) -> None:
        """Wait until all ranks have called this once more, however long some of them take."""
        self._all_started.wait()
        if self._rank:
            self._send(_HERE)
        else:
            self._count_here()
        self._all_here.wait()
        self._all_here.clear()

    def done(self) -> None:
        """This rank ends because its work is done, or because all ranks have agreed to stop."""
        self._all_started.wait(START_SECONDS)
        self._send(_DONE)

    def fail(self, reason: str, *, certain: bool) -> None:
        """This rank ends because of an error; the others shall end too.

        Args:
            certain: whether the error is this rank's own. Any other may follow from the end of another rank, whose
                reason then arrives within seconds and ends this process.
        """
        if not certain:
            time.sleep(_GRACE_SECONDS)
        self._all_started.wait(_GRACE_SECONDS)
        self._over = True
        self._send(_FAILED + (f"rank 0: {reason}" if self._rank == 0 else reason).encode())

    def _serve(self) -> None:
        """The main rank's thread."""
        try:
            server = socket.create_server(("", self._address[1]), backlog=self._world_size)
        except OSError as error:
            self._end(f"rank 0 cannot listen on port {self._address[1]} ({error.strerror}): start the job again")
        missing = set(range(1, self._world_size))
        with server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while len(selector.get_map()) > 1 or missing:
                for key, _ in selector.select(timeout=1):
                    if key.fileobj is not server:
                        self._receive(key.data, selector)
                        continue
                    peer, _ = server.accept()
                    peer.settimeout(_GRACE_SECONDS)
                    job, rank, host = _HELLO.unpack(_read(peer, _HELLO.size) or bytes(_HELLO.size))
                    if job != self._job or rank not in missing:
                        peer.close()  # a stranger
                        continue
                    missing.remove(rank)
                    name = f"rank {rank} on {host.rstrip(bytes(1)).decode(errors='replace')}"
                    self._add(peer, name, selector)
                    if not missing:
                        self._all_started.set()
                        self._deadline = float("inf")
                if self._reason and not missing:
                    self._end(self._reason)
                if time.monotonic() > self._deadline:
                    late = f"rank {min(missing)} has not started within {START_SECONDS} s; its machine's log says why"
                    self._end(self._reason or late)
                self._look_for_launcher()

    def _follow(self) -> None:
        """The thread of any other rank."""
        while True:
            try:
                main = socket.create_connection(self._address, timeout=_GRACE_SECONDS)
                if main.getsockname() != main.getpeername():
                    break
                main.close()  # a port of the kernel's choice that nobody listens on can be connected to itself
            except OSError as error:
                if time.monotonic() > self._deadline:
                    self._end(
                        f"rank {self._rank} has not reached rank 0 at {self._address[0]}:{self._address[1]} within "
                        f"{START_SECONDS} s ({error}); did it start, and can the machines reach each other on any port?"
                    )
            time.sleep(0.1)
            self._look_for_launcher()
        main.sendall(_HELLO.pack(self._job, self._rank, socket.gethostname().encode()))
        with selectors.DefaultSelector() as selector:
            self._add(main, "rank 0", selector)
            self._all_started.set()
            while selector.get_map():
                for key, _ in selector.select(timeout=1):
                    self._receive(key.data, selector)
                self._look_for_launcher()

    def _add(self, peer: socket.socket, name: str, selector: selectors.BaseSelector) -> None:
        peer.settimeout(None)
        # A machine that loses power closes nothing: ask after 10 s of silence, give up after 30 more.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._sending:
            self._peers[peer] = name
        selector.register(peer, selectors.EVENT_READ, peer)

    def _receive(self, peer: socket.socket, selector: selectors.BaseSelector) -> None:
        name = self._peers[peer]
        length = _read(peer, _LENGTH.size)
        message = _read(peer, *_LENGTH.unpack(length)) if length else None
        if message is None:
            selector.unregister(peer)
            self._end_but(peer, f"{name} ended without a word; was it killed, or out of memory or of reach?")
            return
        kind, text = message[:1], message[1:].decode(errors="replace")
        if kind == _FAILED:
            selector.unregister(peer)
            self._end_but(peer, text if self._rank else f"{name}: {text}")
        elif kind == _DONE:
            selector.unregister(peer)
        elif kind == _ALL_HERE:
            self._all_here.set()
        elif kind == _HERE:
            self._count_here()

    def _end_but(self, peer: socket.socket, reason: str) -> None:
        """End because of `peer`, which need not be told; on the main rank, not before all others can be."""
        with self._sending:
            del self._peers[peer]
        if self._rank or self._all_started.is_set():
            self._end(reason)
        elif not self._reason:
            self._reason = reason
            self._deadline = min(self._deadline, time.monotonic() + _GRACE_SECONDS)

    def _count_here(self) -> None:
        with self._sending:
            self._here += 1
            complete = self._here == self._world_size
            if complete:
                self._here = 0
        if complete:
            self._send(_ALL_HERE)
            self._all_here.set()

    def _look_for_launcher(self) -> None:
        if os.getppid() != self._launcher:
            self._end(f"the launcher that started rank {self._rank} is gone")

    def _end(self, reason: str) -> NoReturn:
        """Say why, tell the others, and end this process wherever its main thread is."""
        if self._over:
            sys.exit()  # of this thread
        self._send(_FAILED + reason.encode())
        sys.stdout.flush()
        print(f"error: {reason}", file=sys.stderr, flush=True)
        time.sleep(_LINGER_SECONDS)
        os._exit(1)

    def _send(self, message: bytes) -> None:
        with self._sending:
            for peer in self._peers:
                with contextlib.suppress(OSError):  # gone already
                    peer.sendall(_LENGTH.pack(len(message)) + message)


def _read(peer: socket.socket, count: int) -> Optional[bytes]:
    """`count` bytes; None if the connection closes before."""
    data = b""
    while len(data) < count:
        try:
            part = peer.recv(count - len(data))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return data
