# SPDX-License-Identifier: Apache-2.0
"""How a rank that fails or dies stops all others, on every machine, and why is said where a person looks.

Left to the collective operations, the others would wait for a dead rank, or end in an error of their own connections
that hides the cause. So every rank has a TCP connection to the main one, watched by a thread, from its first moment on:
before Paddle is loaded, and before the ranks meet, which Paddle does while it holds the interpreter's lock. A rank that
fails sends its reason; one that is killed can send nothing, but its connection closes. Either way the main rank prints
the reason, passes it on, and every process ends. A rank that is merely busy or waits for its disk keeps its connection:
once all have started there is no time-out.

Others can reach the port too until all ranks have started; nobody listens from then on. Whoever connects is a stranger
until it has shown that it knows what the ranks of this job know. No stranger is waited for, and only so many are kept.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from typing import NoReturn, Optional

from hmsa.errors import printable

_DONE, _HERE, _ALL_HERE, _FAILED = b"D", b"H", b"A", b"F"
_NONCE_BYTES = 16
_CLAIM = struct.Struct(f"<I64s{_NONCE_BYTES}s")  # of whom connects: rank, host, nonce
_DIGEST_BYTES = 32
_LENGTH = struct.Struct("<I")  # of the message that follows
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
        self._selector = selectors.DefaultSelector()
        self._peers: list[_Connection] = []
        self._here = 0  # ranks that wait in `barrier`, on the main one
        self._sending = threading.Lock()  # also of `_peers` and `_here`
        self._over = False  # this process ends by itself
        self._reason = ""  # why all end once all have started
        self._all_started = threading.Event()
        self._all_here = threading.Event()
        threading.Thread(target=self._serve if rank == 0 else self._follow, name="lifeline", daemon=True).start()

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

    def _serve(self) -> None:
        """The main rank's thread."""
        try:
            door = _Door(self._address, self._world_size, self._secret, self._selector)
        except OSError as error:
            self._end(f"rank 0 cannot listen on port {self._address[1]} ({error.strerror}): start the job again")

        while self._selector.get_map():
            for key, _ in self._selector.select(timeout=1):
                if isinstance(key.data, socket.socket):
                    door.accept(key.data)
                elif key.data.name:
                    self._receive(key.data)
                elif door.recognises(key.data):
                    self._add(key.data)

            if not door.missing and not self._all_started.is_set():
                door.shut()
                self._all_started.set()
                self._deadline = float("inf")
            if self._reason and not door.missing:
                self._end(self._reason)
            if time.monotonic() > self._deadline:
                late = f"rank {min(door.missing)} has not started within {START_SECONDS} s"
                self._end(self._reason or f"{late}; its machine's log says why")
            self._look_for_launcher()

    def _follow(self) -> None:
        """The thread of any other rank."""
        self._add(self._enter())
        self._all_started.set()
        while self._selector.get_map():
            for key, _ in self._selector.select(timeout=1):
                self._receive(key.data)
            self._look_for_launcher()

    def _enter(self) -> _Connection:
        """A connection to the main rank, which knows this one; tried again until all must have started."""
        cause: Optional[OSError] = None
        while True:
            try:
                return self._introduce()
            except OSError as error:
                # That it was not let in says more than that rank 0 was gone after that.
                cause = cause if isinstance(cause, ConnectionAbortedError) else error

            if time.monotonic() > self._deadline:
                self._end(
                    f"rank {self._rank} has not reached rank 0 at {self._address[0]}:{self._address[1]} within "
                    f"{START_SECONDS} s ({cause}); did it start, with the same HMSA_JOB_KEY if there is one, and "
                    "can the machines reach each other on any port?"
                )
            time.sleep(0.1)
            self._look_for_launcher()

    def _introduce(self) -> _Connection:
        """One attempt of `_enter`. Each side shows the other that it knows the secret."""
        main = _Connection(socket.create_connection(self._address, timeout=_GRACE_SECONDS))
        try:
            if main.socket.getsockname() == main.socket.getpeername():
                # a port of the kernel's choice that nobody listens on can be connected to itself
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            main.socket.settimeout(1)
            nonce = self._wait_for(main, _NONCE_BYTES)
            claim = _CLAIM.pack(self._rank, socket.gethostname().encode(), main.nonce)
            main.socket.sendall(claim + _digest(self._secret, b"rank", nonce, claim))
            answer = self._wait_for(main, _DIGEST_BYTES)
            if not hmac.compare_digest(answer, _digest(self._secret, b"main", nonce, claim)):
                raise ConnectionAbortedError("what listens there is not rank 0 of this job")
        except OSError:
            main.socket.close()
            raise
        main.name = "rank 0"
        return main

    def _wait_for(self, main: _Connection, count: int) -> bytes:
        """So many bytes, for which a main rank that is busy may need as long as all have to start."""
        while (data := main.take(count)) is None:
            if time.monotonic() > self._deadline:
                raise TimeoutError("no answer")
            self._look_for_launcher()
        return data

    def _add(self, peer: _Connection) -> None:
        peer.socket.setblocking(False)
        # A machine that loses power closes nothing: ask after 10 s of silence, give up after 30 more.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, option):
                peer.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._sending:
            self._peers.append(peer)
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def _receive(self, peer: _Connection) -> None:
        try:
            message = peer.message()
        except OSError:
            self._end_but(peer, f"{peer.name} ended without a word; was it killed, or out of memory or of reach?")
            return
        except ValueError as error:
            self._end_but(peer, f"{peer.name} {error}")
            return
        if message is None:
            return
        kind, text = message[:1], message[1:].decode(errors="replace")
        if kind == _FAILED:
            self._end_but(peer, text if self._rank else f"{peer.name}: {text}")
        elif kind == _DONE:
            self._selector.unregister(peer.socket)
        elif kind == _ALL_HERE:
            self._all_here.set()
        elif kind == _HERE:
            self._count_here()

    def _end_but(self, peer: _Connection, reason: str) -> None:
        """End because of `peer`, which need not be told; on the main rank, not before all others can be."""
        self._selector.unregister(peer.socket)
        with self._sending:
            self._peers.remove(peer)
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
        self._send_failed(reason)
        sys.stdout.flush()
        print("error: " + "\n".join(map(printable, reason.splitlines())), file=sys.stderr, flush=True)
        time.sleep(_LINGER_SECONDS)
        os._exit(1)

    def _send_failed(self, reason: str) -> None:
        self._send(_FAILED + reason.encode(errors="backslashreplace")[: _MAX_MESSAGE_BYTES - 1])

    def _send(self, message: bytes) -> None:
        with self._sending:
            for peer in self._peers:
                # Gone already; or it has not read for so long that what lies between is full, and will not read this.
                with contextlib.suppress(OSError):
                    peer.socket.sendall(_LENGTH.pack(len(message)) + message)


class _Door:
    """Where the other ranks come in to the main one, and strangers may try; nobody is waited for.

    Attributes:
        missing: ranks that have not come in.

    Raises:
        OSError: nobody can come in at this address.
    """

    def __init__(
        self, address: tuple[str, int], world_size: int, secret: bytes, selector: selectors.BaseSelector
    ) -> None:
        self.missing = set(range(1, world_size))
        self._secret = secret
        self._selector = selector
        self._strangers: list[_Connection] = []  # the oldest first
        self._servers = _listen(*address)
        for server in self._servers:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ, server)

    def accept(self, server: socket.socket) -> None:
        """Let somebody ask to come in. Where too many do, the one that has asked for longest must ask again."""
        if len(self._strangers) >= len(self.missing) + _MAX_STRANGERS:
            self._forget(self._strangers[0]).close()
        try:
            stranger = _Connection(server.accept()[0])
        except OSError:  # too many open files
            if self._strangers:
                self._forget(self._strangers[0]).close()
            return
        self._strangers.append(stranger)
        self._selector.register(stranger.socket, selectors.EVENT_READ, stranger)
        with contextlib.suppress(OSError):  # what is gone again is found when it is read from
            stranger.socket.send(stranger.nonce)

    def recognises(self, stranger: _Connection) -> bool:
        """Read on; whether the stranger turns out to be a missing rank, which then has a name and is not watched."""
        if stranger not in self._strangers:
            return False  # forgotten a moment ago
        try:
            hello = stranger.take(_CLAIM.size + _DIGEST_BYTES)
            if hello is None:
                return False
            stranger.name = self._admit(stranger, hello[: _CLAIM.size], hello[_CLAIM.size :])
        except OSError:
            self._forget(stranger).close()
            return False
        self._forget(stranger)
        return True

    def shut(self) -> None:
        """Nobody can come in, or ask to, from now on."""
        for server in self._servers:
            self._selector.unregister(server)
            server.close()
        while self._strangers:
            self._forget(self._strangers[0]).close()

    def _admit(self, stranger: _Connection, claim: bytes, digest: bytes) -> str:
        """The name of the rank that the stranger claims to be; OSError if it cannot be that one."""
        rank, host, _ = _CLAIM.unpack(claim)
        known = hmac.compare_digest(digest, _digest(self._secret, b"rank", stranger.nonce, claim))
        if not known or rank not in self.missing:
            raise ConnectionRefusedError
        stranger.socket.send(_digest(self._secret, b"main", stranger.nonce, claim))
        self.missing.remove(rank)
        return f"rank {rank} on {host.rstrip(bytes(1)).decode(errors='replace')}"

    def _forget(self, stranger: _Connection) -> socket.socket:
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.socket)
        return stranger.socket


class _Connection:
    """A socket that does not wait, and what has come through it so far.

    Attributes:
        name: who is at the other end, as people are told; empty for a stranger.
        nonce: the random bytes that the other end must answer.
    """

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self.socket = opened
        self.name = ""
        self.nonce = secrets.token_bytes(_NONCE_BYTES)
        self._data = b""  # of what is taken next
        self._length: Optional[int] = None  # of the message that has begun

    def take(self, count: int) -> Optional[bytes]:
        """The next `count` bytes once all are here, None until then; OSError once the connection is closed."""
        while len(self._data) < count:
            try:
                part = self.socket.recv(count - len(self._data))
            except (BlockingIOError, socket.timeout):
                return None
            if not part:
                raise ConnectionAbortedError("closed by the other side")
            self._data += part
        data, self._data = self._data, b""
        return data

    def message(self) -> Optional[bytes]:
        """The next message, else as `take`; ValueError if it is longer than any rank sends."""
        if self._length is None:
            head = self.take(_LENGTH.size)
            self._length = None if head is None else _LENGTH.unpack(head)[0]
        if self._length is None:
            return None
        if self._length > _MAX_MESSAGE_BYTES:
            raise ValueError(f"announced a message of {self._length} bytes, more than any rank sends")
        message = self.take(self._length)
        if message is not None:
            self._length = None
        return message


def _digest(secret: bytes, *parts: bytes) -> bytes:
    """What only those who know the secret can make of the parts."""
    return hmac.new(secret, b"".join(parts), "sha256").digest()


def _listen(host: str, port: int) -> list[socket.socket]:
    """Servers at the addresses of this machine that `host` stands for; at all addresses if it stands for none of them.

    It does not behind a NAT or a service of Kubernetes. A name that stands for a loopback address here, as many systems
    have it for the machine's own, stands for another address on the other machines.
    """
    servers = []
    with contextlib.suppress(socket.gaierror):
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            own_name = ipaddress.ip_address(address[0]).is_loopback and host not in (address[0], "localhost")
            if own_name:
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
