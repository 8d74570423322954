"""What a request to the controller service costs on the loopback, how fair it is to many clients, and its memory.

    python scripts/bench_service.py [--quick] [--minutes 10]

A server is started in a process of its own, and with it a bare route of FastAPI that answers as many bytes for as many
bytes. Both are asked in turn over kept connections, so that another job on the machine slows both: a ratio is that of
medians, the round trip's own numbers want an idle machine.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, Request, Response

from rltemp.io.versions import processor

INFER = "/v2/models/universal/infer"
CLIENTS, ROUNDS = 64, 7
TEMPERATURES = ("student_temperature", "teacher_temperature", "weight")


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests only: shows that it runs")
    parser.add_argument("--minutes", type=float, default=0.0, help="also 64 clients for as long, watching the memory")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--attack", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.attack:
        attack(options.attack)
    else:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "h11", "numpy", "torch"))
        print(f"{processor()}; Python {platform.python_version()}, {libraries}\n")
        seconds, rounds = (0.5, 50) if options.quick else (5.0, 2000)
        with running("--serve") as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            show_trips(url, rounds)
            print(f"{CLIENTS} clients at once: {said(*ask_at_once(url, features(256), CLIENTS, seconds))}", flush=True)
            show_attack(url, seconds, 1 if options.quick else ROUNDS)
            show_memory(url, process.pid, 60 * options.minutes)


def show_trips(url: str, rounds: int) -> None:
    """Round trips of one client, in turn with a bare route of FastAPI."""
    asked = {f"features [{samples}, 8]": features(samples) for samples in (256, 1024, 4096)}
    asked |= {"features [256, 8] for actions": features(256, "action"), "logits [256, 100]": logits(256, 100)}
    print(f"round trips of one client, {rounds} each; milliseconds")
    print(f"{'':32}{'p50':>8}{'p90':>8}{'p99':>8}{'over a bare route':>20}")
    for name, (body, length) in asked.items():
        with contextlib.ExitStack() as stack:
            infer = stack.enter_context(contextlib.closing(Client(url, post(url, INFER, body, length))))
            wire = post(url, f"/route/{len(infer.ask())}", body, length)
            times = interleaved([infer, stack.enter_context(contextlib.closing(Client(url, wire)))], rounds)
        middle = [statistics.median(each) for each in times]
        quantiles = "".join(f"{1e3 * value:8.3f}" for value in np.quantile(times[0], [0.5, 0.9, 0.99]))
        print(f"{name:32}{quantiles}{middle[0] / middle[1]:20.2f}", flush=True)


def show_attack(url: str, seconds: float, rounds: int) -> None:
    """The p99 of one client beside an attacker over that without, the median of some turns."""
    ratios = []
    for _ in range(rounds):
        quiet = ask_at_once(url, features(256), 1, seconds)[1]
        with running("--attack", url):
            time.sleep(1.0)
            attacked = ask_at_once(url, features(256), 1, seconds)[1]
        ratios.append(float(np.quantile(attacked, 0.99) / np.quantile(quiet, 0.99)))
    print(f"p99 beside an attack over p99 without, {rounds} turns: median {statistics.median(ratios):.2f}", flush=True)


def show_memory(url: str, pid: int, seconds: float) -> None:
    """The server's memory while many clients ask."""
    start, step = time.monotonic(), min(60.0, seconds / 5)
    while (gone := time.monotonic() - start) < seconds:
        crowd = ask_at_once(url, features(256), CLIENTS, min(step, seconds - gone))
        minute = (time.monotonic() - start) / 60
        print(f"minute {minute:.1f}: {memory(pid) / 2**20:.1f} MiB; {said(*crowd)}", flush=True)


def said(counts: Sequence[int], times: Sequence[float]) -> str:
    """What clients at once got, in words."""
    p50, p99, worst = (1e3 * float(value) for value in np.quantile(times, [0.5, 0.99, 1.0]))
    middle = statistics.median(counts)
    return f"{min(counts)} / {middle:g} / {max(counts)} answers; p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} ms"


def ask_at_once(
    url: str, request: tuple[bytes, int], clients: int, seconds: float, path: str = INFER
) -> tuple[list[int], list[float]]:
    """Ask from many connections at once, each again as soon as it is answered.

    Args:
        url: Of the server.
        request: A body and the length of its JSON; every answer has the same length.
        clients: Connections.
        seconds: How long.
        path: What is asked.

    Returns:
        Answers of each client, and the seconds that every answer took.

    Raises:
        RuntimeError: Where an answer is not a success, or a connection is cut.
    """
    wire = post(url, path, *request)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        asking = [stack.enter_context(contextlib.closing(Client(url, wire))) for _ in range(clients)]
        for client in asking:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()
        counts, times, end = dict.fromkeys(asking, 0), list[float](), time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            for key, _ in selector.select(end - now):
                client = key.data
                client.read()
                times.append(time.perf_counter() - client.sent)
                counts[client] += 1
                client.send()
    return list(counts.values()), times


class Client:
    """One request over and over on a kept connection: a write each, and the standard library's reading."""

    def __init__(self, url: str, wire: bytes) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((str(where.hostname), where.port or 80), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent, self._wire = 0.0, wire

    def ask(self) -> bytes:
        """Ask once, and wait for the answer."""
        self.send()
        return self.read()

    def send(self) -> None:
        """Send the request."""
        self.sent = time.perf_counter()
        self.socket.sendall(self._wire)

    def read(self) -> bytes:
        """Read the answer's body.

        Raises:
            RuntimeError: Where the answer is not a success.
        """
        with http.client.HTTPResponse(self.socket, method="POST") as answer:
            answer.begin()
            body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {body[:300]!r}")
        return body

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def interleaved(clients: Sequence[Client], rounds: int) -> list[list[float]]:
    """Seconds of each client's round trips, asked in turn; the first tenth of the rounds is left out."""
    times: list[list[float]] = [[] for _ in clients]
    for _ in range(rounds + rounds // 10):
        for client, found in zip(clients, times, strict=True):
            client.ask()
            found.append(time.perf_counter() - client.sent)
    return [found[rounds // 10 :] for found in times]


def features(samples: int, *outputs: str) -> tuple[bytes, int]:
    """The body of a request with features as bytes, and the length of its JSON."""
    return _body({"features": np.random.default_rng(0).normal(size=(samples, 8)).astype("<f4")}, outputs)


def logits(samples: int, classes: int) -> tuple[bytes, int]:
    """The body of a request with logits as bytes, and the length of its JSON."""
    values = np.random.default_rng(0).normal(size=(2, samples, classes)).astype("<f4")
    return _body({"student_logits": values[0], "teacher_logits": 3 * values[1]}, ())


def _body(arrays: dict[str, Any], outputs: Sequence[str]) -> tuple[bytes, int]:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    asked = [{"name": name, "parameters": {"binary_data": True}} for name in outputs or TEMPERATURES]
    head = json.dumps({"inputs": inputs, "outputs": asked}).encode()
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


def post(url: str, path: str, body: bytes, length: int) -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def memory(pid: int) -> int:
    """Bytes of memory that a process holds now; 0 where the system does not say."""
    file = Path(f"/proc/{pid}/status")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def attack(url: str) -> None:
    """Be the attacker: slow connections that stay open, and beside them bodies that are broken or too large."""
    slow = [Client(url, post(url, INFER, b"x", 1)[: 20 + number]) for number in range(100)]
    for client in slow:
        client.send()
    bodies = [b"[" * 100_000, b'{"inputs": [{}]}', b"\xff" * 1000, b"1" * 9_000_000]
    while True:
        for body in bodies:
            with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
                Client(url, post(url, INFER, body, len(body))).ask()
            time.sleep(0.01)


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """This program with other words, in a process of its own."""
    with subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def serve() -> None:
    """Be the server: the service, and beside it the bare route `/route/SIZE`."""
    import torch

    from rltemp.service.app import Service
    from rltemp.service.host import serve as host
    from rltemp.service.limits import Limits
    from rltemp.service.repository import Repository

    torch.set_num_threads(1)
    service, limits, bare = Service(Repository()), Limits(), FastAPI()

    @bare.post("/route/{size}")
    async def route(size: int, request: Request) -> Response:
        await request.body()
        return Response(bytes(size), media_type="application/octet-stream")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await (bare if scope["path"].startswith("/route/") else service)(scope, receive, send)

    host(application, "127.0.0.1", 0, limits=limits, on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
