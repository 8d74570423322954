"""Work that is repeated on a thread of its own, so that no run waits for a service."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable

from rltemp.errors import BadInputError, RequestRefusedError, TrainingStoppedError

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 1.0, 60.0
"""Seconds of the pauses after failures: each is drawn at random up to a bound that doubles from the first to the
second, so that a hundred runs do not come back in the same moment."""


class Poller:
    """Calls a method on a daemon thread: at once, then every so many seconds or when it is woken.

    What the method raises is a failure; then the pauses grow, up to a minute. One warning in the log says that the
    service is away, and one that it is back. The thread ends with the method's owner, whom it does not keep alive.

    Args:
        name: What the log calls the service.
        work: The method.
        seconds: From one call to the next; None: only when woken.
        meanwhile: How runs go on without the service, in a few words.

    Attributes:
        reason: Why the last call failed; empty where it did not.
        failures: Calls that failed so far.
    """

    def __init__(self, name: str, work: Callable[[], None], seconds: float | None, meanwhile: str) -> None:
        self.reason = self._first = ""
        self.failures = 0
        self._name, self._seconds, self._meanwhile = name, seconds, meanwhile
        self._work = weakref.WeakMethod(work)
        self._changed = threading.Condition()
        self._calls = 0
        self._wanted = True
        self._busy = self._ended = self._telling = self._refused = False
        weakref.finalize(work.__self__, self.close)  # type: ignore[attr-defined]  # a method has it

    def start(self, seconds: float, strict: bool = False) -> None:
        """Start the thread, and wait for its first call to end: so long at most.

        Raises:
            BadInputError: Where the service says that the call is a mistake: an unknown model, a wrong token.
            TrainingStoppedError: With `strict`, where the service is away.
        """
        threading.Thread(target=self._repeat, name="rltemp-poller", daemon=True).start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._calls, seconds):
                self.reason = self._first = f"no answer in {seconds:g} s"
            self._telling = True
        if self._refused:
            raise BadInputError(f"{self._name}: {self._first}. Check --rule, its model, and --controller-token-file")
        if self._first and strict:
            raise TrainingStoppedError(f"{self._name}: {self._first} (strict: no fallback)")
        if self._first:
            self._tell(self._first)

    def wake(self) -> None:
        """Have the next call made now; after a failure not before the pause is over."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait for the end of a call that begins after this: so long at most, and not while the service is away."""
        with self._changed:
            calls = self._calls + 1 + self._busy
            self.wake()
            self._changed.wait_for(lambda: self.reason or self._calls >= calls, seconds)

    def close(self) -> None:
        """End the thread, after the call that is under way."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _repeat(self) -> None:
        # Not the global generator: a run's random numbers must not depend on a service.
        draw, failed = random.Random().uniform, 0
        while self._due(draw(0.0, min(LONGEST, SHORTEST * 2.0 ** min(failed - 1, 10))) if failed else 0.0):
            refused, reason = False, ""
            if (work := self._work()) is None:
                return
            try:
                work()
            except Exception as error:  # whatever a service makes of its readers: this thread has to go on
                refused, reason = isinstance(error, RequestRefusedError), str(error) or type(error).__name__
            del work
            failed = failed + 1 if reason else 0
            self._finished(reason, refused)

    def _due(self, pause: float) -> bool:
        """Wait for the end of a pause, and until a call is wanted; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, pause)
            self._changed.wait_for(lambda: self._wanted or self._ended, self._seconds)
            self._wanted, self._busy = False, True
            return not self._ended

    def _finished(self, reason: str, refused: bool) -> None:
        with self._changed:
            if not self._calls:
                self._first, self._refused = reason, refused
            self._calls += 1
            self._busy = False
            self._wanted = self._wanted or bool(reason)
            self.failures += bool(reason)
            changed = bool(reason) != bool(self.reason) and self._telling
            self.reason = reason
            self._changed.notify_all()
        if changed:
            self._tell(reason)

    def _tell(self, reason: str) -> None:
        log.warning(f"{self._name}: {reason}. {self._meanwhile}" if reason else f"{self._name}: it is back")
