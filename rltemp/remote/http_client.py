"""One HTTP request and its answer, over urllib3: of bounded size, never tried twice, no redirect followed, no proxy.

urllib3 is small, needs no other library, and keeps connections. Certificates of `https://` are checked against the
system's (or those that `SSL_CERT_FILE` names).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError, one_line
from rltemp.io.files import read_token
from rltemp.optional_imports import import_library

MAX_ANSWER = 16 * 2**20
"""Bytes of an answer's body."""
BLOCK = 2**16
"""Bytes that are read at once."""
LATER = (408, 425, 429)
"""Of the statuses that call a request a mistake (4xx), those that only ask the client to come back."""


def checked_url(url: str) -> str:
    """Return a service's URL without a slash at its end: `http://host[:port][/prefix]`, or `https://`.

    Raises:
        BadInputError: Where it is none, or holds a user, a password, a query or a fragment.

    >>> checked_url("http://127.0.0.1:8000/")
    'http://127.0.0.1:8000'
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError as error:
        raise BadInputError(one_line(f"{url[:200]!r} is not a URL ({error}); needed: http://HOST:PORT")) from None
    if "@" in parts.netloc:  # not shown: it may be a password
        raise BadInputError("a URL with user:password@ is not taken; give http://HOST:PORT and a token file")
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or not plain or parts.query or parts.fragment:
        raise BadInputError(one_line(f"{url[:200]!r} cannot be asked; needed: http://HOST:PORT or https://HOST"))
    return url.rstrip("/")


@dataclass(frozen=True)
class Answer:
    """What a server answered: status, headers by their names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Asks one server; threads may share it.

    Args:
        url: `http://HOST:PORT`, with or without a path that comes before every other.
        token_file: A file with the token that goes to this server alone, as a bearer's.

    Raises:
        BadInputError: Where the URL or the file cannot be used, or urllib3 is missing.
    """

    def __init__(self, url: str, token_file: Path | None = None) -> None:
        self.url = checked_url(url)
        self._headers = {} if token_file is None else {"Authorization": f"Bearer {read_token(Path(token_file))}"}
        self._urllib3 = import_library("urllib3", "a temperature controller (--controller)", extra="remote")
        self._pool: Any = None
        self._process = 0

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float,
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """Send a request and return the whole answer, whose status is 200 or one that is allowed.

        Args:
            method: GET or POST.
            path: From the server's root, quoted.
            body: Of a POST.
            headers: Beside those that every request has.
            seconds: For connecting, for each wait on the network, and for the whole body.
            allowed: Statuses beside 200.

        Raises:
            ExchangeFailedError: Where there is no whole answer in time, or its status says that a later one may come.
            RequestRefusedError: Where the status says that the request is a mistake (4xx but 408, 425 and 429).
        """
        if self._process != os.getpid():  # at first, and in a fork, which must not read from its parent's connections
            self._pool, self._process = self._urllib3.PoolManager(num_pools=1, maxsize=2), os.getpid()
        ends = time.monotonic() + seconds
        options = {"retries": False, "redirect": False, "preload_content": False, "decode_content": False}
        options["timeout"] = self._urllib3.Timeout(connect=seconds, read=seconds)
        given = {**self._headers, **(headers or {})}
        try:
            with closing(self._pool.request(method, self.url + path, body=body, headers=given, **options)) as response:
                names = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(response.status, names, _body(response, ends))
        except ExchangeFailedError:
            raise
        except Exception as error:  # whatever a hostile answer makes of the parser is no reason to end a run
            raise ExchangeFailedError(one_line(str(error) or type(error).__name__)[:200]) from None
        return _checked(answer, allowed)

    def close(self) -> None:
        """Close the connections that are kept; a later request opens new ones."""
        if self._pool is not None:
            self._pool.clear()


def _body(response: Any, ends: float) -> bytes:
    body = bytearray()
    while block := response.read1(BLOCK):
        body += block
        if len(body) > MAX_ANSWER:
            raise ExchangeFailedError(f"its answer is over {MAX_ANSWER} bytes")
        if time.monotonic() > ends:
            raise ExchangeFailedError("its answer does not end in time")
    return bytes(body)


def _checked(answer: Answer, allowed: tuple[int, ...]) -> Answer:
    if answer.status in (200, *allowed):
        return answer
    said = one_line(answer.body[:300].decode("utf-8", "replace"))
    message = f"it answers {answer.status}{': ' if said else ''}{said}"
    if 400 <= answer.status < 500 and answer.status not in LATER:
        raise RequestRefusedError(message)
    raise ExchangeFailedError(message)
