"""Servers as processes of their own, for tests that ask them over HTTP or with bytes of their own."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.processes import Process, start, until
from support.wire import Answer, answers, read_all, request


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Args:
        url: As `http://127.0.0.1:12345`.
        process: The process, to be sent signals; `process.finish()` gives its exit code and what it printed.
    """

    url: str
    process: Process

    @property
    def address(self) -> str:
        """Host and port, as `tritonclient` wants them."""
        return urlsplit(self.url).netloc

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request of the standard library's client: status, headers by lower-case name, body."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """A connection that waits at most 20 s for anything."""
        client = socket.socket()
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(20)
        try:
            client.connect(("127.0.0.1", urlsplit(self.url).port or 80))
        except OSError:
            client.close()
            raise
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
        """One request on a connection of its own, byte for byte as given."""
        (answer,) = self.ask(request(method, path, body, headers, close=True))
        return answer

    def counts(self) -> dict[str, float]:
        """The service's metrics."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

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
def serving(*words: object, **environment: str) -> Iterator[Served]:
    """Run `rltemp serve` with these words on a free port, wait until it is ready, and kill it at the end."""
    process = start("serve", "--port", "0", *words, **environment)
    try:
        until(lambda: " at http://" in process.read("out") or process.poll() is not None)
        assert process.poll() is None, process.finish(1)
        served = Served(process.read("out").rsplit(" at ", 1)[1].strip(), process)
        assert served.request("GET", "/v2/health/ready")[0] == 200
        yield served
    finally:
        process.send(signal.SIGCONT)
        process.send(signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            process.finish(30)


@contextlib.contextmanager
def serving_application(app: Any, **limits: Any) -> Iterator[Served]:
    """Serve an application as `rltemp serve` does, under `Limits` with these changes; ended with SIGTERM."""
    from rltemp.io.interruption import handled
    from rltemp.service.host import serve
    from rltemp.service.limits import LimitedRequests, Limits

    def work() -> None:
        bounds = Limits(**limits)
        with handled():
            serve(
                LimitedRequests(app, bounds),
                "127.0.0.1",
                0,
                limits=bounds,
                on_ready=lambda url: print(url, flush=True),
            )

    process = Process(work)
    try:
        until(lambda: process.read("out").endswith("\n") or process.poll() is not None)
        assert process.poll() is None, process.finish(1)
        yield Served(process.read("out").strip(), process)
    finally:
        process.send(signal.SIGTERM)
        process.finish(20)
