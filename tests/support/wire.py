"""HTTP as bytes: requests as no client would send them, and the answers that bytes are."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

JSON, BYTES = "application/json", "application/octet-stream"
KINDS = {"<f2": "FP16", "<f4": "FP32", "<f8": "FP64", "<i4": "INT32", "<i8": "INT64"}


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


def infer_body(arrays: Mapping[str, np.ndarray[Any, Any]], **more: Any) -> tuple[bytes, int]:
    """The body of a request with arrays as bytes, and the length of its JSON, which has `more` members."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": KINDS[array.dtype.str]}
        | {"parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + b"".join(array.tobytes() for array in arrays.values()), len(header)


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
            until_the_end = "content-length" not in headers and headers.get("connection") == "close"
            size = len(rest) if until_the_end else int(headers.get("content-length", 0))
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
