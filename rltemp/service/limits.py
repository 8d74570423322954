"""What one client may take of the server: sizes in bytes, times in seconds, counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what arrives and on how long it takes; `rltemp.service.host` holds every connection to them."""

    request_bytes: int = 8 * 2**20
    """A request's body: 1,024 samples of 1,000 classes from both networks fit, in float32."""
    bytes_in_flight: int = 64 * 2**20
    """Bodies of all requests together; the first 64 KiB of each are not counted, so that small ones always pass."""
    head_bytes: int = 16 * 2**10
    """Request line and headers."""
    head_seconds: float = 10.0
    """From the opening of a connection, or a request's first byte, to the end of its headers."""
    body_seconds: float = 10.0
    """From the end of the headers to the end of the body."""
    write_seconds: float = 10.0
    """Until a client has taken its answer."""
    idle_seconds: float = 60.0
    """A connection between two requests."""
    connections: int = 2048
    """Open at once."""
    pipelined: int = 16
    """Requests that a connection sends ahead of their answers."""
    shutdown_seconds: float = 5.0
    """For requests that are under way when the server is asked to stop."""


UNCOUNTED = 64 * 2**10
"""Bytes of a request that the sum over all connections leaves out."""


class Budget:
    """Bytes that all requests hold together, in one thread."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    def take(self, size: int) -> bool:
        """Take bytes where there are as many; says whether there were."""
        if self.taken + size > self.size:
            return False
        self.taken += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.taken -= size
