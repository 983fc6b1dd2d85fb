# SPDX-License-Identifier: Apache-2.0
"""How a rank that fails or dies stops all others, on every machine, and why is said where a person looks.

Left to the collective operations, the others would wait for a dead rank, or end in an error of their own connections
that hides the cause. So every rank has a TCP connection to the main one, watched by a thread, from its first moment on:
before Paddle is loaded, and before the ranks meet, which Paddle does while it holds the interpreter's lock. A rank that
fails sends its reason; one that is killed can send nothing, but its connection closes. Either way the main rank prints
the reason, passes it on, and every process ends. A rank that is merely busy or waits for its disk keeps its connection:
once all have started there is no time-out.

Others can reach the port too until all ranks have started; nobody listens from then on. Whoever connects is a stranger
until it has shown that it knows what the ranks of this job know. Each has a thread of its own, so that nobody waits for
another, and only so many strangers are kept.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import os
import secrets
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, NoReturn

from hmsa.errors import printable

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_DONE, _HERE, _ALL_HERE, _FAILED = b"D", b"H", b"A", b"F"
_MAX_MESSAGE_BYTES = 2**14
_MAX_STRANGERS = 200  # beside the ranks that are still to come
START_SECONDS = 40  # the launchers start all ranks at once, and nothing slow comes before this
_GRACE_SECONDS = 5
_LINGER_SECONDS = 3  # so that the launcher finds the rank that failed ended first, and shows the end of its log


class Lifeline:
    """This rank's connection to the main one; on the main rank, those to all others.

    Args:
        rank: this process among `world_size`; 0 is the main one.
        address: host and port of the main rank, as the others reach it.
        secret: what the ranks of this job know alike and others do not. It is never sent.
    """

    def __init__(self, *, rank: int, world_size: int, address: tuple[str, int], secret: str) -> None:
        self._rank = rank
        self._world_size = world_size
        self._address = address
        self._secret = secret.encode(errors="surrogateescape")
        self._launcher = os.getppid()
        self._deadline = time.monotonic() + START_SECONDS
        self._missing = set(range(1, world_size)) if rank == 0 else {0}
        self._cause = ""  # why rank 0 has not been reached
        self._strangers: list[Connection] = []  # the oldest first
        self._peers: list[Connection] = []
        self._here = 0  # ranks that wait in `barrier`, on the main one
        self._changing = threading.Lock()  # what stands above, and sending
        self._ending = threading.Lock()  # of the first reason to end
        self._over = False  # this process ends by itself
        self._all_started = threading.Event()
        self._all_here = threading.Event()
        _start(self._serve if rank == 0 else self._follow)
        _start(self._watch)

    def barrier(self) -> None:
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
        self._send_failed(f"rank 0: {reason}" if self._rank == 0 else reason)

    def _watch(self) -> None:
        """End with the launcher, and where not all have started in time."""
        while True:
            time.sleep(0.5)
            if os.getppid() != self._launcher:
                self._end(f"the launcher that started rank {self._rank} is gone")
            late = min(self._missing, default=None)
            if late is None or time.monotonic() < self._deadline:
                continue
            if late:
                self._end(f"rank {late} has not started within {START_SECONDS} s; its machine's log says why")
            self._end(
                f"rank {self._rank} has not reached rank 0 at {self._address[0]}:{self._address[1]} within "
                f"{START_SECONDS} s ({self._cause}); did it start, with the same HMSA_JOB_KEY if there is one, and "
                "can the machines reach each other on any port?"
            )

    def _serve(self) -> None:
        """On the main rank: let the others in. Strangers may try, until all have started."""
        try:
            servers = _listen(*self._address)
        except OSError as error:
            self._end(f"rank 0 cannot listen on port {self._address[1]} ({error.strerror}): start the job again")

        while self._missing:
            for server in select.select(servers, (), (), 0.1)[0]:
                self._accept(server)
        for server in servers:
            server.close()
        while self._strangers:
            self._turn_away()
        self._all_started.set()

    def _accept(self, server: socket.socket) -> None:
        """Let somebody ask to come in. Where too many do, the one that has asked for longest must ask again."""
        try:
            stranger = _connection(server.accept()[0])
        except OSError:  # too many open files
            self._turn_away()
            return
        self._strangers.append(stranger)
        if len(self._strangers) > len(self._missing) + _MAX_STRANGERS:
            self._turn_away()
        _start(self._welcome, stranger)

    def _turn_away(self) -> None:
        """Hang up on the stranger that has asked for longest, whose thread then ends."""
        with self._changing, contextlib.suppress(IndexError, OSError):  # none is left, or it is gone
            oldest = socket.socket(fileno=self._strangers.pop(0).fileno())
            try:
                oldest.shutdown(socket.SHUT_RDWR)
            finally:
                oldest.detach()

    def _welcome(self, stranger: Connection) -> None:
        """Wait for a stranger to show that it is a missing rank, and then for what it says."""
        try:
            if not _is_known(stranger, self._secret + b"rank"):
                raise ConnectionRefusedError
            _answer(stranger, self._secret + b"main")
            rank, host = stranger.recv_bytes(_MAX_MESSAGE_BYTES).decode(errors="replace").split(" ", 1)
            with self._changing:
                if stranger not in self._strangers or int(rank) not in self._missing:
                    raise ConnectionRefusedError
                self._strangers.remove(stranger)
                self._peers.append(stranger)
                self._missing.remove(int(rank))
                with contextlib.suppress(OSError):  # gone again, which is found next
                    stranger.send_bytes(b"welcome")
        except (OSError, EOFError, ValueError):
            with self._changing:
                stranger.close()
            return
        self._listen_to(stranger, f"rank {rank} on {host}")

    def _follow(self) -> None:
        """On any other rank: reach the main one, and do as it says."""
        while self._missing:
            try:
                with socket.create_connection(self._address, timeout=_GRACE_SECONDS) as opened:
                    # A port of the kernel's choice that nobody listens on can be connected to itself.
                    if opened.getsockname() != opened.getpeername():
                        self._introduce(_connection(opened))
            except OSError as error:
                # That it was not let in says more than that rank 0 was gone after that.
                self._cause = self._cause or str(error)
            time.sleep(0.1)
        self._all_started.set()
        self._listen_to(self._peers[0], "rank 0")

    def _introduce(self, main: Connection) -> None:
        """Each side shows the other that it knows the secret. A main rank that is busy may take long to answer."""
        try:
            _answer(main, self._secret + b"rank")
            if not _is_known(main, self._secret + b"main"):
                raise ConnectionRefusedError
            main.send_bytes(f"{self._rank} {socket.gethostname()}".encode())
            main.recv_bytes(_MAX_MESSAGE_BYTES)
        except (OSError, EOFError):
            self._cause = "it was not let in, or what listens there is not rank 0 of this job"
            main.close()
        else:
            self._peers.append(main)
            self._missing.clear()

    def _listen_to(self, peer: Connection, name: str) -> None:
        """Do as the messages of another rank say, until it is done."""
        while True:
            try:
                message = peer.recv_bytes(_MAX_MESSAGE_BYTES)
            except (OSError, EOFError):
                self._end(f"{name} ended without a word; was it killed, or out of memory or of reach?")
            kind, text = message[:1], message[1:].decode(errors="replace")
            if kind == _FAILED:
                self._end(text if self._rank else f"{name}: {text}")
            elif kind == _DONE:
                return
            elif kind == _ALL_HERE:
                self._all_here.set()
            elif kind == _HERE:
                self._count_here()

    def _count_here(self) -> None:
        with self._changing:
            self._here += 1
            complete = self._here == self._world_size
            if complete:
                self._here = 0
        if complete:
            self._send(_ALL_HERE)
            self._all_here.set()

    def _end(self, reason: str) -> NoReturn:
        """Say why, tell the others, and end this process wherever its main thread is."""
        with self._ending:
            if self._peers:  # Not before all others can be told, unless one is late anyway.
                self._all_started.wait(min(_GRACE_SECONDS, self._deadline - time.monotonic()))
            if self._over:
                sys.exit()  # of this thread
            self._send_failed(reason)
            sys.stdout.flush()
            print("error: " + "\n".join(map(printable, reason.splitlines())), file=sys.stderr, flush=True)
            time.sleep(_LINGER_SECONDS)
            os._exit(1)

    def _send_failed(self, reason: str) -> None:
        self._send(_FAILED + reason.encode(errors="backslashreplace")[: _MAX_MESSAGE_BYTES - 1])

    def _send(self, message: bytes) -> None:
        """To all; no rank is ever told so much that it must read before this returns."""
        with self._changing:
            for peer in self._peers:
                with contextlib.suppress(OSError):  # gone already
                    peer.send_bytes(message)


def _start(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, name="lifeline", daemon=True).start()


def _connection(opened: socket.socket) -> Connection:
    """Messages of bytes through a socket, which is given up."""
    from multiprocessing.connection import Connection

    opened.settimeout(None)
    # A machine that loses power closes nothing: ask after 10 s of silence, give up after 30 more.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return Connection(opened.detach())


def _is_known(other: Connection, key: bytes) -> bool:
    """Whether the other side knows the key, which is not sent: it must answer random bytes with their digest."""
    nonce = secrets.token_bytes(16)
    other.send_bytes(nonce)
    return hmac.compare_digest(other.recv_bytes(_MAX_MESSAGE_BYTES), hmac.digest(key, nonce, "sha256"))


def _answer(other: Connection, key: bytes) -> None:
    """The other end of `_is_known`."""
    other.send_bytes(hmac.digest(key, other.recv_bytes(_MAX_MESSAGE_BYTES), "sha256"))


def _listen(host: str, port: int) -> list[socket.socket]:
    """Servers at the addresses of this machine that `host` stands for; at all addresses if it stands for none of them.

    It does not behind a NAT or a service of Kubernetes. A name that stands for a loopback address here, as many systems
    have it for the machine's own, stands for another address on the other machines.
    """
    servers = []
    with contextlib.suppress(socket.gaierror):
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if ipaddress.ip_address(address[0]).is_loopback and host not in (address[0], "localhost"):
                continue
            try:
                servers.append(socket.create_server(address[:2], family=family, backlog=socket.SOMAXCONN))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
    if servers:
        return servers

    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return [socket.create_server(("", port), family=family, backlog=socket.SOMAXCONN, dualstack_ipv6=both)]
