"""Who may ask: nobody but this machine, or whoever knows the token of a file."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from rltemp.errors import BadInputError
from rltemp.io import files

log = logging.getLogger(__name__)

SHORTEST = 16
"""Characters of a token."""

Headers = Iterable[tuple[bytes, bytes]]


def read_token(path: Path) -> bytes:
    """The token of a file: its one line.

    Raises:
        BadInputError: Where there is none that can be used; the message does not show it.
    """
    token = files.read_token(path).encode()
    if len(token) < SHORTEST:
        raise BadInputError(
            f"the token in {path} needs {SHORTEST} characters or more, as from: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    with contextlib.suppress(OSError):
        if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning(f"--token-file {path} can be read by others on this machine; chmod 600 it")
    return token


def check_address(host: str, token: bytes | None) -> None:
    """Refuse an address that others can reach where no token keeps them out.

    Raises:
        BadInputError: Naming the option that is missing.
    """
    if token is None and not is_loopback(host):
        raise BadInputError(
            f"binding to {host} needs --token-file; anyone on the network could otherwise use this policy"
        )


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed(headers: Headers, token: bytes) -> bool:
    """Tell whether a request carries the token, in constant time for a given length.

    >>> allowed([(b"authorization", b"Bearer 0123456789abcdef")], b"0123456789abcdef")
    True
    """
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, credentials = (given[0] if len(given) == 1 else b"").partition(b" ")
    return hmac.compare_digest(credentials.strip(), token) and scheme.lower() == b"bearer"
