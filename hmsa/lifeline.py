# SPDX-License-Identifier: Apache-2.0
"""How a rank that fails or dies stops all others, on every machine, and why is said where a person looks.

Left to the collective operations, the others would wait for a dead rank, or end in an error of their own connections
that hides the cause. So every rank keeps a TCP connection to the main one, watched by a thread. A rank that fails sends
its reason; one that is killed can send nothing, but its connection closes. Either way the main rank prints the reason,
passes it on, and every process ends. A rank that is merely busy or waits for its disk keeps its connection: there is no
time-out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from typing import Callable, NoReturn, Optional

import numpy as np

_DONE = b"done"
_HELLO = struct.Struct("<QI64s")  # token, rank, host
_LENGTH = struct.Struct("<I")  # of the message that follows
_JOIN_SECONDS = 60  # for connecting, right after all ranks have met
_GRACE_SECONDS = 5


class Lifeline:
    """This rank's connection to the main one; on the main rank, those to all others. To be made by all at once.

    Args:
        rank: this process among `world_size`; 0 is the main one.
        host: name or address of the main rank's machine, as the others reach it.
        share: int64 array -> its element-wise sum over all ranks.
    """

    def __init__(self, *, rank: int, world_size: int, host: str, share: Callable[[np.ndarray], np.ndarray]) -> None:
        self._rank = rank
        self._peers: dict[socket.socket, str] = {}
        try:
            if rank == 0:
                with socket.create_server(("", 0), backlog=world_size) as server:
                    token = secrets.randbits(62)
                    share(np.array([server.getsockname()[1], token], np.int64))
                    self._accept(server, token, world_size - 1)
            else:
                port, token = map(int, share(np.zeros(2, np.int64)))
                main = socket.create_connection((host, port), timeout=_JOIN_SECONDS)
                main.sendall(_HELLO.pack(token, rank, socket.gethostname().encode()))
                self._add(main, "rank 0")
        except OSError as error:
            print(
                f"warning: rank {rank} has no connection to watch the others by ({error}); should one die, it may take "
                "long to show: let the machines reach each other on any port",
                file=sys.stderr,
            )
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _accept(self, server: socket.socket, token: int, count: int) -> None:
        server.settimeout(_JOIN_SECONDS)
        while len(self._peers) < count:
            peer, _ = server.accept()
            peer.settimeout(_JOIN_SECONDS)
            said, rank, host = _HELLO.unpack(_receive(peer, _HELLO.size) or bytes(_HELLO.size))
            if said == token:
                self._add(peer, f"rank {rank} on {host.rstrip(bytes(1)).decode(errors='replace')}")
            else:
                peer.close()  # a stranger

    def _add(self, peer: socket.socket, name: str) -> None:
        peer.settimeout(None)
        # A machine that loses power closes nothing: ask after 10 s of silence, give up after 30 more.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[peer] = name

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, name in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, (peer, name))
            while selector.get_map():
                for key, _ in selector.select():
                    peer, name = key.data
                    length = _receive(peer, _LENGTH.size)
                    message = _receive(peer, *_LENGTH.unpack(length)) if length else None
                    if message == _DONE:
                        selector.unregister(peer)
                    elif message is None:
                        self._end(f"{name} ended without a word; was it killed, or out of memory or of reach?")
                    else:
                        text = message.decode(errors="replace")
                        self._end(text if self._rank else f"{name}: {text}")

    def _end(self, reason: str) -> NoReturn:
        """Say why, tell the others, and end this process wherever its main thread is."""
        self._send(reason.encode())
        sys.stdout.flush()
        print(f"error: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    def _send(self, message: bytes) -> None:
        for peer in self._peers:
            with contextlib.suppress(OSError):  # gone already
                peer.sendall(_LENGTH.pack(len(message)) + message)

    def done(self) -> None:
        """This rank ends because its work is done, or because all ranks have agreed to stop."""
        self._send(_DONE)

    def fail(self, reason: str, *, certain: bool) -> None:
        """This rank ends because of an error; the others shall end too.

        Args:
            certain: whether the error is this rank's own. Any other may follow from the end of another rank, whose
                reason then arrives within seconds and ends this process.
        """
        if not certain:
            time.sleep(_GRACE_SECONDS)
        self._send((f"rank 0: {reason}" if self._rank == 0 else reason).encode())


def _receive(peer: socket.socket, count: int) -> Optional[bytes]:
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
