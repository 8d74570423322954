"""The file that holds the token between a controller service and its clients."""

from __future__ import annotations

from pathlib import Path

from rltemp.errors import BadInputError, one_line


def read_token(file: Path) -> str:
    """Return the token in a file: its one line, which goes to the server and nowhere else.

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
