"""The server process: an ASGI application behind sockets that hold every client to `Limits`.

uvicorn on asyncio's own loop: of the hosts measured (docs/experiments.md) it answers fastest among those that are fair.
None cuts a slow body or a slow reader; in uvicorn a class of our own can (`rltemp.service.connection`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import uvicorn

from rltemp.errors import BadInputError
from rltemp.io.interruption import deferred, requested
from rltemp.service.connection import Connection
from rltemp.service.limits import Budget, Limits

SPARE = 64
"""File descriptors for everything but clients."""


def serve(
    app: Any,
    host: str,
    port: int,
    *,
    limits: Limits,
    on_ready: Callable[[str], None],
    on_refusal: Callable[[int], None] = lambda status: None,
) -> None:
    """Serve an application until SIGINT or SIGTERM, then finish what is under way.

    Args:
        app: An ASGI 3 application.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        limits: What clients are held to.
        on_ready: Called with the server's URL when it answers there.
        on_refusal: Called with the status of every request that is refused before it reaches the application.

    Raises:
        BadInputError: Where the address cannot be listened on.
        InterruptedRunError: After the last answer, with the signal that asked the server to stop.
    """
    room = _descriptors(limits.connections + SPARE) - SPARE
    limits = replace(limits, connections=min(limits.connections, max(room, 1)))
    listener = _listen(host, port)
    connection = functools.partial(
        Connection, limits=limits, budget=Budget(limits.bytes_in_flight), on_refusal=on_refusal
    )
    config = uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type]  # uvicorn calls it as it would the class
        ws="none",
        loop="asyncio",  # under uvloop, 64 clients at once are not served alike
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=1024,
        timeout_graceful_shutdown=limits.shutdown_seconds,  # type: ignore[arg-type]  # asyncio takes fractions
    )
    with deferred("server"):
        Server(config, lambda: on_ready(url(listener))).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's server, which looks after its connections' limits and leaves signals to `rltemp.io.interruption`."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and say so."""
        await super().startup(sockets)
        self.on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: cut who is too slow; says whether to stop."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.hold(now)
        return requested() is not None or await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are noted by the process that owns the command line."""
        yield


def url(listener: socket.socket) -> str:
    """The address of a listening socket, as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on, and an answer's body waits 40 ms for the head's receipt.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInputError(f"cannot listen on {host}:{port}: {error}. Give another --host or --port") from error
    return listener


def _descriptors(wanted: int) -> int:
    """Let this process open as many files as its clients may need, where the system lets it; how many it does let."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows counts none
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return soft
    return wanted
