"""Run folders: what a command was asked (`config.json`) and what came out (`result.json`, written last).

A folder belongs to one command with one configuration. The same command on the same folder goes on or shows
what is there; any other is refused, so a finished result is never overwritten. A comparison may grow (`reopen_run`).
One process at a time works in a folder (`run.lock`). All files are strict JSON: no NaN (written as null), no key twice.
What the clock says goes into `timing.json`, so that `result.json` is the same, byte for byte, whenever the same run is
done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write
from rltemp.io.locks import LOCK, held, hold, release
from rltemp.io.strict_json import parse
from rltemp.io.versions import versions

CONFIG, RESULT, TIMING = "config.json", "result.json", "timing.json"
MAX_JSON_BYTES = 1 << 20


def open_run(out: Path, command: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make `out` the run folder of this command and configuration, or find that it already is.

    Args:
        out: The folder; made where it is missing, with its parents.
        command: The command's name, as in `compare`; stored beside the configuration under the key `command`.
        config: The command's options by name, without the folder itself (a folder may be moved). Paths are
            stored as text, tuples as lists, numbers that are not finite as null.

    Returns:
        The result of the finished run, to be shown as it stands, or None where there is work to do: a new
        folder, or one that the same command left unfinished.

    Raises:
        BadInputError: Where the folder is another run's, holds files of somebody else, cannot be written, or another
            process is at work in it.
    """
    wanted = as_stored({"command": command, **config})
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A run killed at its very first write leaves a temporary file and its lock, and no more.
        if all(entry.suffix == ".tmp" or entry.name == LOCK for entry in out.iterdir()):
            hold(out)
            if not (out / CONFIG).exists():
                _write(out / CONFIG, wanted)
    except OSError as error:
        raise BadInputError(
            f"cannot use {out} as a run folder: {error.strerror or error}. Choose another --out"
        ) from error
    if not (out / CONFIG).exists():
        raise BadInputError(f"{out} is not an rltemp run folder (files, but no {CONFIG}). Choose another --out")
    different = changes(read_json(out / CONFIG), wanted)
    if different:
        state = "a finished" if (out / RESULT).exists() else "an unfinished"
        raise BadInputError(
            f"{out} holds {state} run with other settings (differs in: {different}). Choose another --out"
        )
    if not (out / RESULT).exists():
        hold(out)
    return read_json(out / RESULT) if (out / RESULT).exists() else None


def stored_but_for(out: Path, command: str, config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The configuration that a folder holds, where it is this one but for the options of these names; {} elsewhere."""
    if not (out / CONFIG).is_file():
        return {}
    found, wanted = read_json(out / CONFIG), as_stored({"command": command, **config})
    before, now = ({name: one for name, one in each.items() if name not in names} for each in (found, wanted))
    return {} if found == wanted or changes(before, now) else found


def reopen_run(out: Path, command: str, config: Mapping[str, Any]) -> None:
    """Make a folder's run, finished or not, the beginning of one with another configuration: its result is no more.

    Raises:
        BadInputError: Where another process is at work there.
    """
    hold(out)
    (out / RESULT).unlink(missing_ok=True)
    _write(out / CONFIG, as_stored({"command": command, **config}))


@contextlib.contextmanager
def nothing_left_by_a_failed_start(folder: Path) -> Iterator[None]:
    """Within, a run that fails before it has anything to keep leaves no folder that stands in a later one's way.

    A folder that was there before stays as it is.

    Raises:
        BadInputError: At once, where the folder cannot be made.
    """
    fresh = not folder.exists()
    if fresh or (folder.is_dir() and not any(folder.iterdir())):
        _refuse_unwritable(folder)
    try:
        yield
    except (Exception, SystemExit):
        if fresh and held(folder) and {one.name for one in folder.rglob("*") if one.is_file()} <= {CONFIG, LOCK}:
            release(folder)
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written into. It is tried: what permissions say is not all there is."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    what = "" if there.is_dir() else "is no folder"
    try:
        if not what:
            TemporaryFile(dir=there).close()
    except OSError:
        what = "cannot be written to"
    if what:
        raise BadInputError(f"cannot use {folder} as a run folder: {there} {what}. Choose another --out")


def finish_run(folder: Path, result: Mapping[str, Any], seconds: float, **timing: Any) -> dict[str, Any]:
    """Write `result.json`, which marks the run as finished, and return what was written.

    Args:
        folder: A folder that `open_run` opened.
        result: What came out, by name. `versions` and `platform` are added here.
        seconds: How long the run took, in seconds; goes into `timing.json`.
        **timing: What else depends on the clock, or on how often the run was interrupted.

    Raises:
        BadInputError: Where the folder already holds a result, or cannot be written.
    """
    if (folder / RESULT).exists():
        raise BadInputError(f"{folder} already holds a finished run; nothing was overwritten. Choose another --out")
    machine = {"system": platform.system(), "machine": platform.machine(), "processors": os.cpu_count()}
    written = as_stored({**result, "versions": versions(), "platform": machine})
    _write(folder / TIMING, as_stored({"seconds": round(seconds, 3), **timing}))
    _write(folder / RESULT, written)
    release(folder)
    return written


def in_a_name(text: str, longest: int = 60) -> str:
    """Text as a part of a folder's name; of a longer one the end, behind a mark of the whole.

    >>> in_a_name("dtkd:reference=2"), in_a_name("runs/p/policy.safetensors")
    ('dtkd-reference-2', 'runs-p-policy.safetensors')
    """
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
    if len(name) <= longest:
        return name
    return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-{name[-longest:].strip('-.')}"


def read_config(path: Path, command: str) -> dict[str, Any]:
    """Return the options that a configuration file holds, for `--config`, without its checked key `command`.

    Args:
        path: A `config.json`, a file written by hand like it (`command` may be missing), or a run folder.
        command: The command that asks.

    Raises:
        BadInputError: Where the file cannot be read or was written by another command.
    """
    options = read_json(path / CONFIG if path.is_dir() else path)
    written_by = options.pop("command", command)
    if written_by != command:
        raise BadInputError(f"{path} is the configuration of {written_by!r}; needed: one of {command!r}")
    return options


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most 1 MiB.

    Raises:
        BadInputError: Where the file is missing, larger, not strict JSON, or not one object with unique keys.
    """
    try:
        # Opening a pipe would wait for its writer, a device may never end: only files.
        if path.exists() and not path.is_file():
            raise BadInputError(f"{path} is not a file; needed: a JSON file")
        with path.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise BadInputError(f"{path} is larger than {MAX_JSON_BYTES} bytes, the most that is read as JSON")
    try:
        value = parse(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BadInputError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds a JSON {type(value).__name__}; needed: one object, as in {{...}}")
    if unreadable := next(_unreadable(value), ""):
        raise BadInputError(f"{path} holds control characters, in {unreadable[:80]!r}")
    return value


@contextlib.contextmanager
def showing(folder: Path) -> Iterator[None]:
    """Show a stored result in this context: one that no command wrote raises BadInputError, whatever it lacks."""
    try:
        yield
    except BadInputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInputError(
            f"{folder / RESULT} is not a result of this command ({type(error).__name__}: {str(error)[:200]}). Choose "
            "another --out"
        ) from error


def as_stored(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back, the form in which configurations are compared; NaN and infinity become null."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=_as_json), parse_constant=lambda _: None)
    return plain


def _as_json(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def _write(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def changes(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 4) -> str:
    """What differs, as `seed 0 -> 1, rules[1] fixed:4 -> dtkd`; empty where nothing does."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [key for key in {**before, **after} if before.get(key, "null") != after.get(key, "null")]
    shown = [f"{key} {before.get(key, 'absent'):.60} -> {after.get(key, 'absent'):.60}" for key in keys[:most]]
    return ", ".join(shown + [f"{len(keys) - most} more"] * (len(keys) > most))


def _unreadable(value: Any) -> Iterator[str]:
    """Every text inside `value` that would do something to a terminal or cannot be printed."""
    if isinstance(value, str) and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        yield value
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _unreadable(item)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value inside `value` by its dotted name, as JSON."""
    if isinstance(value, Mapping) and (value or not name):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, json.dumps(value)
