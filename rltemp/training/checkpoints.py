"""Checkpoints of a training run: the last two, each whole and verified, for going on exactly where it was.

For one's own runs, trusted by where they lie, never something to exchange: a policy or a network has a file of its own.
Even so nothing in them can run code: this is the one module that reads them, with `weights_only=True`.

A file is one line (format, SHA-256) and what `torch.save` makes of the state. It is written beside its place, reaches
the disk, and takes its name in one rename. Saving takes at most about a fiftieth of the time: a small student is saved
several times a second, a large one every few minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rltemp.errors import ArtifactRefusedError, BadInputError, InterruptedRunError, TrainingStoppedError
from rltemp.io.files import atomic_write
from rltemp.io.interruption import deferred, requested
from rltemp.io.run_folders import changes
from rltemp.training.identity import conditions, random_state, set_random_state

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
KEPT = 2
SHARE = 50.0
INEXACT = "inexact_resume"
"""What a result calls that it went on under other conditions."""
RETRY = 10.0
"""Seconds from one that could not be written to the next try."""
TRIES = 3
FORMAT = 2
"""Number of what a checkpoint holds; 1 was version 0.1.0's."""
_HEADER = re.compile(rb"rltemp checkpoint (\d+) sha256 ([0-9a-f]{64})")
_REACHED = "reached"

State = dict[str, Any]
"""Tensors, numbers and text by name, nested: what `torch.load` reads without running code."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Their folder.
        unit: What a run counts, as in "step".
        share: One is due when the time since the last is this many times what that took to save; 0 for always.
        fresh: Remove what is there and begin at step 0.
        inexact: Go on although threads, device or a version differ from the checkpoint's.
        extra: Further facts that a continuation depends on, by name.
        reader: Write nothing, and leave signals to who does: another process has the same state.

    Attributes:
        saved: The step of the last checkpoint that was written or read.
        resumed_at: The step that `resume` went on from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        unit: str = "step",
        share: float = SHARE,
        fresh: bool = False,
        inexact: bool = False,
        extra: Mapping[str, str] | None = None,
        reader: bool = False,
    ) -> None:
        self.folder = folder
        self.reader = reader
        self.unit = unit
        self.share = share
        self.inexact = inexact
        self.conditions = {**conditions(), **(extra or {})}
        self.differences: str = ""
        self.resumed_at: int | None = None
        self.saved: int | None = None
        self._due = 0.0
        self._failures = 0
        self._reached: int | None = None
        self._leave = contextlib.ExitStack()
        if fresh and not reader:
            self.remove()

    def __enter__(self) -> Checkpoints:
        """Within, a signal waits for the next `tick`."""
        self._leave.enter_context(deferred(self.unit))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.__exit__(kind, error, trace)

    def resume(self) -> State | None:
        """The state to go on from, or None where the run has saved nothing yet.

        A damaged file is set aside with a warning, and the one before it used.

        Raises:
            ArtifactRefusedError: Where there are checkpoints and none can be used, or one was made under conditions
                that differ and `inexact` is not set, or by a version with another format: a run never begins at step 0
                in silence.
        """
        refuse_other_formats(self.folder)
        files = sorted(self.folder.glob(f"{self.unit}-*.ckpt"), reverse=True)
        for file in files:
            try:
                content = _read(file)
            except _DamagedError as error:
                log.warning(str(error))
                continue
            self._check_conditions(content["conditions"], file)
            for damaged in files[: files.index(file)] if not self.reader else []:
                damaged.rename(damaged.with_suffix(".damaged"))  # in nobody's way, and still there to be looked at
            self.saved = self.resumed_at = step = int(content["step"])
            set_random_state(content["random"])
            log.info(f"Resumed at {self.unit} {step} (lost {max(self._read_reached() - step, 0)} {self.unit}s).")
            state: State = content["state"]
            return state
        if files:
            raise ArtifactRefusedError(
                f"no checkpoint in {self.folder} can be used ({', '.join(file.name for file in files)}). Bring back a "
                "copy of one, or begin at step 0 with --fresh"
            )
        return None

    def tick(self, step: int, state: Callable[[], State]) -> None:
        """Tell that a step is done: saves where that is due, and where a signal asks to stop saves and stops.

        Raises:
            InterruptedRunError: Where a signal came.
            TrainingStoppedError: Where checkpoints could not be written three times in a row.
        """
        if self.reader:
            return
        self._note(step)
        if (number := requested()) is not None:
            self.save(step, state())
            raise InterruptedRunError(number, self.standing(step))
        if time.monotonic() >= self._due:
            self.save(step, state())

    def save(self, step: int, state: State) -> None:
        """Write a checkpoint now; the last two are kept. Where that fails the run goes on, twice."""
        started = time.monotonic()
        content = {"step": step, "conditions": self.conditions, "random": random_state(), "state": state}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest().encode()
        try:
            atomic_write(
                self.folder / f"{self.unit}-{step:09d}.ckpt",
                b"rltemp checkpoint %d sha256 %s\n" % (FORMAT, digest) + data,
            )
        except BadInputError as error:
            self._failed(step, error)
            return
        self.saved, self._failures = step, 0
        for old in sorted(self.folder.glob(f"{self.unit}-*.ckpt"))[:-KEPT]:
            old.unlink(missing_ok=True)
        ended = time.monotonic()
        self._due = ended + self.share * (ended - started)

    def remove(self) -> None:
        """Forget all that is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def mark(self) -> dict[str, str]:
        """What a result says of a continuation that was not exact; nothing where it was."""
        return {INEXACT: self.differences} if self.differences else {}

    def standing(self, step: int) -> str:
        """What is saved, in words."""
        if self.saved is None:
            return f"at {self.unit} {step}, nothing saved yet"
        lost = f", {step - self.saved} further lost" if step > self.saved else ""
        return f"saved at {self.unit} {self.saved}{lost}"

    def _check_conditions(self, found: Mapping[str, str], file: Path) -> None:
        self.differences = changes(found, self.conditions)
        if self.differences and not self.inexact:
            raise ArtifactRefusedError(
                f"{file} was made under other conditions ({self.differences}), so the run would not end as it would "
                "have. Go on under the same ones, or add --allow-inexact (the result says so), or --fresh"
            )

    def _failed(self, step: int, error: BadInputError) -> None:
        self._failures += 1
        self._due = time.monotonic() + RETRY
        last = "there is no good checkpoint" if self.saved is None else f"the last good one is {self.saved}"
        line = f"could not write the checkpoint of {self.unit} {step}: {error}; {last}"
        if self._failures >= TRIES:
            raise TrainingStoppedError(f"{line}. Stopped after {TRIES} tries; the same command goes on from there")
        log.warning(f"{line}. The run goes on.")

    def _note(self, step: int) -> None:
        """Keep the number of steps done, which costs nothing and tells a later run how many were lost."""
        with contextlib.suppress(OSError):
            if self._reached is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._reached = os.open(self.folder / _REACHED, os.O_RDWR | os.O_CREAT, 0o666)
                self._leave.callback(os.close, self._reached)
            os.lseek(self._reached, 0, os.SEEK_SET)
            os.write(self._reached, struct.pack("<q", step))

    def _read_reached(self) -> int:
        with contextlib.suppress(OSError, struct.error):
            return int(struct.unpack("<q", (self.folder / _REACHED).read_bytes())[0])
        return 0


class _DamagedError(ArtifactRefusedError):
    """A file that is not what was written: the one before it may be."""


def refuse_other_formats(folder: Path) -> None:
    """Raise `ArtifactRefusedError` where a folder has a checkpoint of another version of rltemp."""
    for file in sorted(folder.glob("*.ckpt")):
        with contextlib.suppress(OSError), file.open("rb") as stream:
            if (stated := _HEADER.match(stream.read(200))) and (number := int(stated[1])) != FORMAT:
                version = "version 0.1.0" if number == 1 else f"another version (format {number}, needed: {FORMAT})"
                raise ArtifactRefusedError(
                    f"{file} was made by {version} of rltemp, whose runs this version cannot go on with. Finish the "
                    "run with that version, or begin at step 0 with --fresh or another --out"
                )


def _read(file: Path) -> State:
    """The content of a checkpoint, checked before it is parsed.

    Raises:
        ArtifactRefusedError: Where it has another format, or is not one, or not as it was written (`_DamagedError`).
    """
    try:
        header, _, data = file.read_bytes().partition(b"\n")
    except OSError as error:
        raise _DamagedError(f"cannot read the checkpoint {file}: {error}") from error
    if (stated := _HEADER.fullmatch(header)) is None:
        raise _DamagedError(f"{file} is not a checkpoint; the one before it is tried")
    wanted, found = stated[2].decode(), hashlib.sha256(data).hexdigest()
    if wanted != found:
        raise _DamagedError(
            f"{file} is damaged: SHA-256 mismatch (written {wanted:.8}, found {found:.8}); the one before it is tried"
        )
    try:
        content: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content.keys() != {"step", "conditions", "random", "state"}:
            raise ValueError(f"it has {sorted(content)}")
    except Exception as error:  # whatever a hostile file makes of the unpickler: no code of it runs
        raise _DamagedError(f"{file} is not what a checkpoint holds; nothing of it ran") from error
    return content
