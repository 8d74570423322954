"""Count the files on the way of one batch and of one action: `python tests/support/hops.py` prints both numbers.

A file is on the way when a function of it runs between one call of a certain function and the next, or waits for that
function: everything that a reader would step into with a debugger.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

Stop = tuple[str, str]
"""A file, relative to the root, and the bare name of a function in it."""

BATCH = ("distill", "--rule", "universal", "--task", "toy", "--epochs", "1")
ACTION = ("train-policy", "--task", "toy", "--updates", "1", "--students-per-update", "2", "--replicas", "2")
STARTS: dict[str, tuple[Sequence[str], Stop]] = {
    "batch": (BATCH, ("rltemp/training/distill.py", "observe")),
    "action": ((*ACTION, "--validation-students", "1"), ("envs/played.py", "_taken")),
}
"""The command that is run, and the function with which a step of it begins."""


class Way:
    """What a command calls; `calls` in all of it, `files` in its second step."""

    def __init__(self, start: Stop) -> None:
        self.calls: set[Stop] = set()
        self.files: set[str] = set()
        self._start, self._steps = start, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls."""
        if event != "call" or (stop := _stop(frame)) is None:
            return
        self.calls.add(stop)
        if stop == self._start:
            self._steps += 1
            if self._steps == 2:
                above = (_stop(each) for each, _ in traceback.walk_stack(frame))
                self.files |= {each[0] for each in above if each is not None}
        if self._steps == 2:
            self.files.add(stop[0])


def follow(what: str, out: Path) -> Way:
    """Run the command that `what` names, into the folder `out`, and return its way."""
    from rltemp.cli.main import main  # here, so that the program below finds it

    words, start = STARTS[what]
    way = Way(start)
    before = sys.getprofile()
    sys.setprofile(way)
    try:
        main([*words, "--out", str(out)])
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(before)
    return way


def _stop(frame: FrameType) -> Stop | None:
    """Where a frame is; None in other people's code, in tests, and where a module is imported."""
    code = frame.f_code
    if code.co_name == "<module>" or not code.co_filename.startswith(str(ROOT)):
        return None
    file = str(Path(code.co_filename).resolve().relative_to(ROOT))
    return (file, code.co_name) if file.startswith(("rltemp", "envs", "agents")) else None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name in STARTS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"one {name}: {len(follow(name, Path(folder, 'run')).files)} files")
