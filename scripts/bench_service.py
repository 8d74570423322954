"""What a request to the controller service costs on the loopback, how fair it is to many clients, and its memory.

    python scripts/bench_service.py [--quick] [--minutes 10]

A server is started in a process of its own, and with it two bare endpoints that answer as many bytes for as many bytes:
one on the server itself (ASGI), one as a route of FastAPI. All are asked in turn over kept connections, so that another
job on the machine slows all of them: a ratio is that of medians, the round trip's own numbers want an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, Request, Response

from rltemp.io.versions import processor

MODEL = "universal"
SAMPLES = (256, 1024, 4096)
CLIENTS = 64
LENGTH = "Inference-Header-Content-Length"
FAIR = "64 clients: fewest answers of one over the median"


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests only: shows that it runs")
    parser.add_argument("--minutes", type=float, default=0.0, help="also 64 clients for as long, watching the memory")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    libraries = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "httptools", "numpy", "torch"))
    print(f"{processor()}; Python {platform.python_version()}, {libraries}\n")
    with served() as (url, process):
        _show_trips(url, 50 if options.quick else 2000)
        _show_crowd(url, process.pid, 0.5 if options.quick else 5.0)
        if options.minutes:
            _show_memory(url, process.pid, 60 * options.minutes)


def _show_trips(url: str, rounds: int) -> None:
    columns = input_columns(url)
    asked = {f"features [{samples}, {columns}]": features(samples, columns) for samples in SAMPLES}
    asked["features [256, ...] for actions"] = features(256, columns, "action")
    asked["logits [256, 100]"] = logits(256, 100)
    print(f"round trips of one client, {rounds} each; milliseconds")
    print(f"{'':36}{'p50':>8}{'p90':>8}{'p99':>8}{'over bare ASGI':>16}{'over a bare route':>20}")
    for name, (body, length) in asked.items():
        with contextlib.ExitStack() as stack:
            infer = stack.enter_context(Client(url, f"/v2/models/{MODEL}/infer", body, length))
            bare = stack.enter_context(Client(url, f"/bare/{infer.answer_bytes}", body, length))
            route = stack.enter_context(Client(url, f"/route/{infer.answer_bytes}", body, length))
            times = interleaved([infer, bare, route], rounds)
        middle = [statistics.median(each) for each in times]
        spread = "".join(f"{1e3 * value:8.3f}" for value in np.quantile(times[0], [0.5, 0.9, 0.99]))
        print(f"{name:36}{spread}{middle[0] / middle[1]:16.2f}{middle[0] / middle[2]:20.2f}", flush=True)
    print("(targets: 256 samples of features at most 1.5 over a bare route of FastAPI; features at most 1 ms at p50)\n")


def _show_crowd(url: str, pid: int, seconds: float) -> None:
    body, length = features(256, input_columns(url))
    wire = post(url, f"/v2/models/{MODEL}/infer", body, length)
    crowd = ask_at_once(url, wire, CLIENTS, seconds)
    print(f"{CLIENTS} clients at once for {seconds:g} s, 256 samples of features: {_said(crowd)}\n", flush=True)


def _show_memory(url: str, pid: int, seconds: float) -> None:
    body, length = features(256, input_columns(url))
    wire = post(url, f"/v2/models/{MODEL}/infer", body, length)
    print("minute   memory, MiB   answers")
    start, step = time.monotonic(), min(60.0, seconds / 5)
    while (gone := time.monotonic() - start) < seconds:
        crowd = ask_at_once(url, wire, CLIENTS, min(step, seconds - gone))
        minute = (time.monotonic() - start) / 60
        print(f"{minute:6.1f}{memory(pid) / 2**20:14.1f}   {_said(crowd)}", flush=True)


@dataclass
class Crowd:
    """What clients at once got: answers of each, and the seconds of every answer."""

    counts: list[int]
    seconds: list[float] = field(repr=False)


def _said(crowd: Crowd) -> str:
    low, middle, high = min(crowd.counts), statistics.median(crowd.counts), max(crowd.counts)
    p50, p99 = (1e3 * float(value) for value in np.quantile(crowd.seconds, [0.5, 0.99]))
    worst = 1e3 * max(crowd.seconds)
    return f"a client {low} / {middle:g} / {high} (min, median, max); p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} ms"


def ask_at_once(url: str, wire: bytes, clients: int, seconds: float) -> Crowd:
    """Ask from many connections at once, each again as soon as it is answered.

    Args:
        url: Of the server.
        wire: The bytes of a request, of which every answer has the same length.
        clients: Connections.
        seconds: How long.

    Raises:
        RuntimeError: Where an answer is not a success, or a connection is cut.
    """
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        sockets = [stack.enter_context(contextlib.closing(connect(url))) for _ in range(clients)]
        size = answer_size(sockets[0], wire)
        counts, sent, got, times = [0] * clients, [0.0] * clients, [0] * clients, list[float]()
        for index, one in enumerate(sockets):
            one.setblocking(True)
            selector.register(one, selectors.EVENT_READ, index)
            sent[index] = time.perf_counter()
            one.sendall(wire)
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            for key, _ in selector.select(end - now):
                index = key.data
                data = sockets[index].recv(2**16)
                if not data or (not got[index] and not data.startswith(b"HTTP/1.1 200")):
                    raise RuntimeError(f"client {index} was answered {data[:300]!r}")
                got[index] += len(data)
                if got[index] >= size:
                    now = time.perf_counter()
                    times.append(now - sent[index])
                    counts[index], got[index], sent[index] = counts[index] + 1, 0, now
                    sockets[index].sendall(wire)
    return Crowd(counts, times)


class Client(contextlib.AbstractContextManager["Client"]):
    """One request over and over on a kept connection: a write each, and the standard library's reading."""

    def __init__(self, url: str, path: str, body: bytes, length: int) -> None:
        self._socket = connect(url)
        self._wire = post(url, path, body, length)
        self.answer_bytes = len(self.ask())

    def ask(self) -> bytes:
        """Ask once.

        Raises:
            RuntimeError: Where the answer is not a success.
        """
        self._socket.sendall(self._wire)
        with http.client.HTTPResponse(self._socket, method="POST") as answer:
            answer.begin()
            body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {body[:300]!r}")
        return body

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._socket.close()


def interleaved(clients: Sequence[Client], rounds: int) -> list[list[float]]:
    """Seconds of each client's round trips, asked in turn."""
    times: list[list[float]] = [[] for _ in clients]
    for index in range(-rounds // 10, rounds):
        for client, found in zip(clients, times, strict=True):
            start = time.perf_counter()
            client.ask()
            if index >= 0:
                found.append(time.perf_counter() - start)
    return times


def features(samples: int, columns: int, output: str | None = None) -> tuple[bytes, int]:
    """The body of a request with features as bytes, and the length of its JSON."""
    values = np.random.default_rng(0).normal(size=(samples, columns)).astype("<f4")
    return _body({"features": values}, [output] if output else ["student_temperature", "teacher_temperature", "weight"])


def logits(samples: int, classes: int) -> tuple[bytes, int]:
    """The body of a request with logits as bytes, and the length of its JSON."""
    values = np.random.default_rng(0).normal(size=(2, samples, classes)).astype("<f4")
    names = ["student_temperature", "teacher_temperature", "weight"]
    return _body({"student_logits": values[0], "teacher_logits": 3 * values[1]}, names)


def _body(arrays: dict[str, Any], outputs: Sequence[str]) -> tuple[bytes, int]:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    asked = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = json.dumps({"inputs": inputs, "outputs": asked}).encode()
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


def post(url: str, path: str, body: bytes, length: int) -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}{LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def connect(url: str) -> socket.socket:
    """A connection that sends what it is given at once."""
    where = urlsplit(url)
    one = socket.create_connection((str(where.hostname), where.port or 80), timeout=60)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def answer_size(one: socket.socket, wire: bytes) -> int:
    """Bytes of the answer to a request, its head included."""
    one.sendall(wire)
    data = b""
    while b"\r\n\r\n" not in data:
        data += one.recv(2**16)
    head = data.partition(b"\r\n\r\n")[0]
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = len(head) + 4 + int(lengths[0].partition(b":")[2])
    while len(data) < size:
        data += one.recv(2**16)
    return size


def input_columns(url: str) -> int:
    """How many features the model takes."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", f"/v2/models/{MODEL}")
        inputs = json.loads(connection.getresponse().read())["inputs"]
    return int(next(port["shape"][1] for port in inputs if port["name"] == "features"))


def memory(pid: int) -> int:
    """Bytes of memory that a process holds now; 0 where the system does not say."""
    file = Path(f"/proc/{pid}/status")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def served() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server in a process of its own: its address, and the process."""
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def serve() -> None:
    """Be the server: the service, and beside it the bare endpoints `/bare/SIZE` and `/route/SIZE`."""
    import torch

    from rltemp.service.app import Service
    from rltemp.service.host import serve as host
    from rltemp.service.limits import Limits
    from rltemp.service.repository import Repository

    torch.set_num_threads(1)
    service, limits, routes = Service(Repository()), Limits(), FastAPI()

    @routes.post("/route/{size}")
    async def route(size: int, request: Request) -> Response:
        await request.body()
        return Response(bytes(size), media_type="application/octet-stream")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path.startswith("/bare/"):
            await receive()
            size = path[6:].encode()
            head = [(b"content-type", b"application/octet-stream"), (b"content-length", size)]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": bytes(int(size))})
        elif path.startswith("/route/"):
            await routes(scope, receive, send)
        else:
            await service(scope, receive, send)

    host(application, "127.0.0.1", 0, limits=limits, on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
