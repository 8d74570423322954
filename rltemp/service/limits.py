"""What one client may take of the server: sizes in bytes, times in seconds, counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what arrives; `rltemp.service.host` holds connections to them."""

    request_bytes: int = 8 * 2**20
    """A request's body; 1,024 samples of 1,000 classes from both networks in float32 fit."""
    bytes_in_flight: int = 64 * 2**20
    """Bodies of all connections together that are arriving or being answered."""
    head_bytes: int = 32 * 2**10
    """Request line and headers."""
    head_seconds: float = 10.0
    """From a connection's or a request's first byte to the end of its headers."""
    body_seconds: float = 10.0
    """From the end of the headers to the end of the body."""
    write_seconds: float = 10.0
    """Until a client has taken its answer."""
    idle_seconds: float = 60.0
    """A kept connection between two requests."""
    connections: int = 1024
    """Open at once."""
    shutdown_seconds: float = 5.0
    """For requests that are under way when the server is asked to stop."""
