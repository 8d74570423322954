"""A server in a process of its own, and clients that write bytes to it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.processes import Process

pytest.importorskip("fastapi", reason="needs rltemp[serve]")

from rltemp.service.host import serve
from rltemp.service.limits import Limits


@dataclass(frozen=True)
class Answer:
    """What a server sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> str:
        """The sentence of `{"error": ...}`."""
        assert self.headers["content-type"].startswith("application/json"), self
        value = json.loads(self.body)
        assert list(value) == ["error"], value
        assert isinstance(value["error"], str)
        return value["error"]


@dataclass(frozen=True)
class Service:
    """A running server."""

    process: Process
    url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """A connection that waits at most 20 s for anything."""
        client = socket.socket()
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def ask(self, *parts: bytes, pause: float = 0.0) -> list[Answer]:
        """What is answered to these bytes, until the server closes."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused while it was still sent
                for part in parts:
                    client.sendall(part)
                    time.sleep(pause)
            return answers(read_all(client))

    def send(self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """One request on a connection of its own, as a client would send it."""
        (answer,) = self.ask(request(method, path, body, headers, close=True))
        return answer

    def memory(self) -> int:
        """Bytes of memory that it holds now."""
        return int(self._status("VmRSS")) * 1024

    def threads(self) -> int:
        return int(self._status("Threads"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def _status(self, name: str) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def served(app: Any, prepare: Callable[[], object] | None = None, **limits: Any) -> Iterator[Service]:
    """An application on a free port of the loopback, in a process of its own; ended with SIGTERM.

    Args:
        app: The application.
        prepare: Called in that process first.
        limits: Those of `Limits` that are not the defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "url"

        def ready(url: str) -> None:
            (said.parent / "part").write_text(url)
            (said.parent / "part").rename(said)

        def work() -> None:
            if prepare is not None:
                prepare()
            _serve(app, Limits(**limits), ready)

        process = Process(work)
        try:
            deadline = time.monotonic() + 60
            while not said.exists():
                assert process.poll() is None, process.finish()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.005)
            yield Service(process, said.read_text())
        finally:
            process.send(signal.SIGTERM)
            process.finish(20)


def _serve(app: Any, limits: Limits, ready: Any) -> None:
    from rltemp.io.interruption import handled

    with handled():
        serve(app, "127.0.0.1", 0, limits=limits, on_ready=ready)


def request(
    method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), *, close: bool = False
) -> bytes:
    """The bytes of a request; Content-Length and Host are given unless `headers` has them."""
    given = {name.lower() for name, _ in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in given:
        lines.append("Host: localhost")
    if body and not given & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def read_all(client: socket.socket) -> bytes:
    """What arrives until the other side closes, or resets."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(2**16):
            data += part
    return bytes(data)


def closed_within(client: socket.socket, seconds: float) -> bool:
    """Whether the other side closes in this time, whatever it sends before."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([client], [], [], left)[0]:
            try:
                if not client.recv(2**16):
                    return True
            except ConnectionResetError:
                return True
    return False


def answers(data: bytes) -> list[Answer]:
    """The answers that these bytes are; interim ones (100) too."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        assert end, f"an answer is cut in its head: {data[:200]!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body, rest = _chunks(rest)
        else:
            size = int(headers.get("content-length", 0))
            assert len(rest) >= size, f"an answer is cut: {size} bytes announced, {len(rest)} came"
            body, rest = rest[:size], rest[size:]
        found.append(Answer(int(first.split()[1]), headers, body))
        data = rest
    return found


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            return body, data
