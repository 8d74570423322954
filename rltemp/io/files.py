"""How files are written here, whole or not at all, and how a file with a token is read."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from rltemp.errors import BadInputError, one_line


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds the old file or the new one, never a part of either.

    The bytes go to a temporary file in the same folder (made where it is missing), reach the disk, and take
    the name in one rename. A run that is killed meanwhile leaves the old file as it was.

    Raises:
        BadInputError: Where the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, whatever the user's umask says.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise BadInputError(
            f"cannot write {path}: {error}. Needed: a file name in a folder that you may write to, with "
            f"{len(data):,} bytes of free space"
        ) from error
    finally:
        # It is still there only where the rename failed; where its folder is no folder, asking is an error.
        with contextlib.suppress(OSError):
            temporary.unlink()


def json_lines(file: Path) -> list[Any]:
    """What the lines of a file hold, a JSON value each; nothing where there is no file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def add_json_line(file: Path, value: Any) -> None:
    """Write a value as a further line of a file, in a folder that is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(value) + "\n")


def cache_folder() -> Path:
    """Where teachers, results and compiled code are kept: `$RLTEMP_CACHE`, or `~/.cache/rltemp`.

    Raises:
        BadInputError: Where there is no such home folder.
    """
    try:
        return Path(os.environ.get("RLTEMP_CACHE") or "~/.cache/rltemp").expanduser()
    except RuntimeError as error:
        raise BadInputError(f"no home folder to keep teachers in: {error} Set RLTEMP_CACHE to a folder") from error


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


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
