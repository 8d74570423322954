"""Where a service is, and the token that it is asked with."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rltemp.errors import BadInputError, one_line


@dataclass(frozen=True)
class Server:
    """Where requests go: `http://host[:port][/prefix]`, or `https://`."""

    secure: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def of(cls, url: str) -> Server:
        """Read a URL.

        Raises:
            BadInputError: Where it is none, or holds a user, a password, a query or a fragment.

        >>> Server.of("http://127.0.0.1:8000/")
        Server(secure=False, host='127.0.0.1', port=8000, prefix='')
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadInputError(one_line(f"{url[:200]!r} is not a URL ({error}); needed: http://HOST:PORT")) from None
        if "@" in parts.netloc:  # not shown: it may be a password
            raise BadInputError("a URL with user:password@ is not taken; give http://HOST:PORT and a token file")
        plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not host or not plain or parts.query or parts.fragment:
            raise BadInputError(one_line(f"{url[:200]!r} cannot be asked; needed: http://HOST:PORT or https://HOST"))
        secure = parts.scheme == "https"
        return cls(secure, host, port or (443 if secure else 80), parts.path.rstrip("/"))

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine, as far as its name says."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    @property
    def authority(self) -> str:
        """Host and port as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_token(file: Path) -> str:
    """The token in a file: its one line, which goes to the server and nowhere else.

    Raises:
        BadInputError: Where the file cannot be read or holds no token.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(4097)
    except OSError as error:
        raise BadInputError(one_line(f"cannot read the token file {file}: {error.strerror}")) from None
    token = data.strip().decode("latin-1")
    if not token or len(data) > 4096 or not token.isascii() or not token.isprintable() or " " in token:
        raise BadInputError(
            one_line(f"the token file {file} needs one line of 1 to 4096 printable ASCII characters, no blanks")
        )
    return token
