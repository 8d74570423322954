"""One TensorBoard events file, appended to in order and cut back to where a run goes on.

TensorBoard's own writer starts another file each time and writes from a thread of its own, whose error on a full disk
ends it in silence. Here a run has one file; what cannot be written waits in memory, within bounds, and is tried again.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections import deque
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger(__name__)


FLUSH_SECONDS = 1.0
MAX_WAITING = 50_000
"""Events that wait for a disk; of more, the oldest are dropped."""


class EventFile:
    """The events of one run.

    Args:
        folder: Where TensorBoard looks.
        size: Bytes of an earlier part of this run to keep, as `flush` gave it; what comes after them is cut off.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.folder = folder
        self._size = 0
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._warned = False
        self._flushed = time.monotonic()
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.rltemp"
        self._take_over(size)

    def add(self, summary: Summary, step: int) -> None:
        """Append a summary at a step."""
        self._waiting.append(_framed(Event(wall_time=time.time(), step=step, summary=summary)))
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> int:
        """Write what waits, where that is possible; the size of the file, in bytes, to go on from later."""
        self._flushed = time.monotonic()
        data = b"".join(self._waiting)
        if data:
            try:
                self._write(data)
                self._waiting.clear()
            except OSError as error:
                self._warn(f"cannot write the TensorBoard log {self._path}: {error.strerror or error}")
        return self._size

    def close(self) -> None:
        """Write the rest, and say what could not be."""
        self.flush()
        lost = self._dropped + len(self._waiting)
        if lost:
            log.warning(f"{lost} points of the TensorBoard log in {self.folder} were dropped.")

    def _take_over(self, size: int) -> None:
        """Go on with the file that is there, cut to its first `size` bytes; files beside it are not this run's."""
        found = sorted(self.folder.glob("events.out.tfevents.*"))
        for file in found[size > 0 :]:
            file.unlink()
        if size and found:
            self._path = found[0]
            self._size = min(size, self._path.stat().st_size)
            os.truncate(self._path, self._size)
        if self._size < size:
            self._warn(f"the TensorBoard log in {self.folder} has lost its last {size - self._size} bytes")

    def _write(self, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self._path.exists()
        if self._size and not there:
            self._warn(f"the TensorBoard log {self._path} is gone; a new one begins with the next points")
            self._size = 0
        if not self._size:
            data = _framed(Event(wall_time=time.time(), file_version="brain.Event:2")) + data
        with self._path.open("r+b" if there else "xb") as file:
            # What an earlier try wrote half-way is written over.
            file.truncate(self._size)
            file.seek(self._size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(data)

    def _warn(self, line: str) -> None:
        if not self._warned:
            log.warning(f"{line}. The run goes on.")
        self._warned = True


def _framed(event: Event) -> bytes:
    """An event as the file has it: its length, its bytes, and a checksum of each."""
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()
