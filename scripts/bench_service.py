"""What a request to the controller service costs on the loopback, and how fair it is to many clients.

    python scripts/bench_service.py [--quick]

A server is started in a process of its own, and with it a bare route of FastAPI that answers as many bytes for as many
bytes. Both are asked in turn over kept connections, so that another job on the machine slows both: a ratio is that of
medians, the round trip's own numbers want an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, Request, Response

from rltemp.io.versions import processor

INFER = "/v2/models/universal/infer"
CLIENTS, ROUNDS = 64, 7


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests only: shows that it runs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--attack", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.attack:
        asyncio.run(attack(options.attack))
    else:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "h11", "numpy", "torch"))
        print(f"{processor()}; Python {platform.python_version()}, {libraries}\n")
        seconds, rounds = (0.5, 50) if options.quick else (5.0, 2000)
        with running("--serve") as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            asyncio.run(show_trips(url, rounds))
            counts, times = ask_at_once(url, features(256), CLIENTS, seconds)
            p50, p99, worst = (1e3 * float(value) for value in np.quantile(times, [0.5, 0.99, 1.0]))
            spread = f"{min(counts)} / {statistics.median(counts):g} / {max(counts)} answers"
            print(f"{CLIENTS} clients at once: {spread}; p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} ms", flush=True)
            show_attack(url, seconds, 1 if options.quick else ROUNDS)


async def show_trips(url: str, rounds: int) -> None:
    """Round trips of one client, in turn with a bare route of FastAPI."""
    print(f"round trips of one client, {rounds} each; milliseconds")
    print(f"{'':32}{'p50':>8}{'p90':>8}{'p99':>8}{'over a bare route':>20}")
    asked = {f"features [{samples}, 8]": features(samples) for samples in (256, 1024, 4096)}
    student, teacher = np.random.default_rng(0).normal(size=(2, 256, 100))
    sent = {"student_logits": student, "teacher_logits": 3 * teacher, "progress": np.full(1, 0.5)}
    for name, (body, length) in (asked | {"logits [256, 100]": request_body(**sent)}).items():
        infer = await Client.connected(url, INFER, body, length)
        bare = await Client.connected(url, f"/route/{len(await infer.ask())}", body, length)
        for _ in range(rounds):
            await infer.ask()
            await bare.ask()
        times, bare_times = (client.times[rounds // 10 :] for client in (infer, bare))  # the first warm up
        quantiles = "".join(f"{1e3 * value:8.3f}" for value in np.quantile(times, [0.5, 0.9, 0.99]))
        print(f"{name:32}{quantiles}{statistics.median(times) / statistics.median(bare_times):20.2f}", flush=True)


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


def ask_at_once(url: str, request: tuple[bytes, int], clients: int, seconds: float) -> tuple[list[int], list[float]]:
    """Ask from many connections at once for some seconds: answers of each client, and the seconds of every answer."""

    async def ask() -> list[list[float]]:
        asking = [await Client.connected(url, INFER, *request) for _ in range(clients)]
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client.ask_until(end) for client in asking))
        return [client.times for client in asking]

    times = asyncio.run(ask())
    return [len(each) for each in times], [seconds for each in times for seconds in each]


class Client:
    """One request over and over on a kept connection; `times` has the seconds that each answer took."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], wire: bytes) -> None:
        self._reader, self.writer = streams
        self.wire, self.times = wire, list[float]()

    @classmethod
    async def connected(cls, url: str, path: str, body: bytes, length: int) -> Client:
        """A client with a connection of its own; `length` is that of the body's JSON."""
        where = urlsplit(url)
        head = f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/octet-stream\r\n"
        head += f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
        return cls(await asyncio.open_connection(where.hostname, where.port), head.encode() + body)

    async def ask(self) -> bytes:
        """Ask once; the answer's body."""
        began = time.perf_counter()
        self.writer.write(self.wire)
        head = await self._reader.readuntil(b"\r\n\r\n")
        body = await self._reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[-1]))
        self.times.append(time.perf_counter() - began)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{head!r}: {body[:300]!r}")
        return body

    async def ask_until(self, end: float) -> None:
        """Ask until this time of the performance counter, and close."""
        while time.perf_counter() < end:
            await self.ask()
        self.writer.close()
        await self.writer.wait_closed()


def features(samples: int) -> tuple[bytes, int]:
    """The body of a request with features as bytes, and the length of its JSON."""
    return request_body(features=np.random.default_rng(0).normal(size=(samples, 19)))


def request_body(**arrays: np.ndarray[Any, Any]) -> tuple[bytes, int]:
    """The body of a request with arrays as bytes, and the length of its JSON."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP64", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


async def attack(url: str) -> None:
    """Be the attacker: slow connections that stay open, and beside them bodies that are broken or too large."""
    slow = [await Client.connected(url, INFER, b"x", 1) for _ in range(100)]
    for number, client in enumerate(slow):
        client.writer.write(client.wire[: 20 + number])
    bodies = [b"[" * 100_000, b'{"inputs": [{}]}', b"\xff" * 1000, b"1" * 9_000_000]
    while True:
        for body in bodies:
            with contextlib.suppress(OSError, RuntimeError, EOFError):
                await (await Client.connected(url, INFER, body, len(body))).ask()
            await asyncio.sleep(0.01)


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

    from rltemp.service.app import Service  # in the process of the service alone
    from rltemp.service.host import serve as host
    from rltemp.service.limits import Limits
    from rltemp.service.repository import Repository

    torch.set_num_threads(1)
    service, bare = Service(Repository()), FastAPI()

    @bare.post("/route/{size}")
    async def route(size: int, request: Request) -> Response:
        await request.body()
        return Response(bytes(size), media_type="application/octet-stream")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await (bare if scope["path"].startswith("/route/") else service)(scope, receive, send)

    host(application, "127.0.0.1", 0, limits=Limits(), on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
