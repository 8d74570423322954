"""A small server on a raw socket that answers as badly as it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

Behaviour = Callable[[socket.socket, bytes], None]
"""What happens to a request, `[head and body]`, that came over a connection; may raise OSError."""


def http(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """A whole answer; `length` is what it claims."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answers(answer: bytes) -> Behaviour:
    return lambda connection, request: connection.sendall(answer)


def closes_after(answer: bytes) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    return behave


def drips(answer: bytes, seconds: float) -> Behaviour:
    """One byte at a time, for ever."""

    def behave(connection: socket.socket, request: bytes) -> None:
        for index in range(len(answer)):
            connection.sendall(answer[index : index + 1])
            time.sleep(seconds)

    return behave


def late(seconds: float, behaviour: Behaviour) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        time.sleep(seconds)
        behaviour(connection, request)

    return behave


def floods(start: bytes, block: bytes) -> Behaviour:
    """An answer without an end."""

    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(block)

    return behave


def hangs(connection: socket.socket, request: bytes) -> None:
    """Say nothing, and keep the connection."""


class RawServer:
    """Listens on a port of its own; every connection has a thread.

    Attributes:
        behaviour: What happens to the next request.
        requests: What came.
        connections: How many there were.
    """

    def __init__(self, behaviour: Behaviour = hangs) -> None:
        self.behaviour = behaviour
        self.requests: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: the port refuses, connections are closed."""
        with contextlib.suppress(OSError):  # wakes `accept`, which a close alone does not
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open = []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while (request := _read(connection)) is not None:
                self.requests.append(request)
                self.behaviour(connection, request)


def _read(connection: socket.socket) -> bytes | None:
    """One request, or None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(65536)):
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < (int(lengths[0]) if lengths else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
