"""Whether a service may be asked: not while it fails or is so slow that it would hold up a training.

    if breaker.closed:
        try: ...ask...; breaker.answered(seconds)
        except ExchangeFailedError as error: breaker.failed(str(error))

While the breaker is open nobody asks in a training step: a thread of the breaker's own asks now and then, and the
first good answer closes it. Pauses grow, up to a minute, and are drawn at random up to their length, so that a hundred
runs do not come back in the same moment.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rltemp.errors import RequestRefusedError

State = Literal["closed", "open", "refused"]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Patience:
    """When a breaker opens, and how long it waits.

    What is counted is trouble, in deadlines, which is the time that it costs a run: a call that fails counts 1, an
    answer that is slow as much of the deadline as it took. So whatever the service does, in 100 calls a run loses some
    three deadlines, and beside that less than `slow` a call.

    Args:
        deadline: Seconds that a call may take.
        slow: An answer that takes more, in seconds, is slow; a fifth of the deadline by default. A service of this
            kind answers in a hundredth of it, so what takes so long is a service in trouble, not a far one.
        failures: Trouble that opens the breaker...
        window: ...within so many calls.
        shortest: Seconds, the longest that the first pause can be; each further one twice as long...
        longest: ...up to this. A service that came back less than so long ago is on trial: one failure opens the
            breaker again, and the next pause is longer than the last.
    """

    deadline: float
    slow: float | None = None
    failures: float = 3.0
    window: int = 100
    shortest: float = 1.0
    longest: float = 60.0

    @property
    def slowest(self) -> float:
        """Seconds that an answer may take and not be slow."""
        return self.deadline / 5 if self.slow is None else self.slow


class Breaker:
    """Closed: the service is asked. Open: it is not, and a thread looks whether it is back. Refused: never again.

    Args:
        probe: Asks the service as a step would, on the breaker's thread; returns how long that took, in seconds.
        patience: When to open, and for how long.
        on_change: Told every new state and its reason, by the thread that found out; what it raises is ignored.
        clock: Seconds, never back.
        draw: A random number between two.

    Attributes:
        state: closed, open, or refused.
        openings: How often it has opened.
    """

    def __init__(
        self,
        probe: Callable[[], float],
        patience: Patience,
        on_change: Callable[[State, str], None] = lambda state, reason: None,
        *,
        clock: Clock = time.monotonic,
        draw: Callable[[float, float], float] | None = None,
    ) -> None:
        self.state: State = "closed"
        self.openings = 0
        self._probe, self._patience, self._on_change, self._clock = probe, patience, on_change, clock
        # Not the global generator: a run's random numbers must not depend on how often a service was away.
        self._draw = draw or random.Random().uniform
        self._closed_since = -float("inf")
        self._doublings = 0
        self._calls = 0
        self._troubles: deque[tuple[int, float]] = deque()
        self._began()

    @property
    def closed(self) -> bool:
        """Whether the service may be asked; costs next to nothing."""
        if self._process != os.getpid():  # a fork has its parent's state and none of its threads
            self._began()
            if self.state == "open":
                self._start_probing()
        return self.state == "closed"

    def answered(self, seconds: float) -> bool:
        """Tell of a good answer, and how long it took; whether that was slow."""
        self._calls += 1
        slow = seconds > self._patience.slowest
        if slow:
            self._trouble(min(seconds / self._patience.deadline, 1.0), f"it took {1000 * seconds:.0f} ms to answer")
        return slow

    def failed(self, reason: str) -> None:
        """Tell of a call that failed."""
        self._calls += 1
        self._trouble(1.0, reason)

    def refused(self, reason: str) -> None:
        """Tell of a request that the service says is a mistake: open for good."""
        self._change("refused", reason)

    def open(self, reason: str) -> None:
        """Open it, without counting."""
        self._change("open", reason)

    def close(self) -> None:
        """End the thread; the state stays what it is."""
        self._stop.set()

    def _began(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def _trouble(self, cost: float, reason: str) -> None:
        self._troubles.append((self._calls, cost))
        while self._troubles[0][0] <= self._calls - self._patience.window:
            self._troubles.popleft()
        on_trial = self._clock() - self._closed_since < self._patience.longest
        if sum(cost for _, cost in self._troubles) >= (1.0 if on_trial else self._patience.failures):
            self._change("open", reason)

    def _change(self, state: State, reason: str) -> None:
        with self._lock:
            if self.state == state or self.state == "refused":
                return
            was, self.state = self.state, state
            self._troubles.clear()
            if state == "closed":
                self._closed_since = self._clock()
            elif was == "closed":
                self.openings += 1
                lately = self._clock() - self._closed_since < self._patience.longest
                self._doublings = self._doublings + 1 if lately else 0
        self._tell(state, reason)
        if state == "open":
            self._start_probing()

    def _tell(self, state: State, reason: str) -> None:
        try:
            self._on_change(state, reason)
        except Exception:  # a line that cannot be written is no reason to end a run, or the probing
            return

    def _start_probing(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._probing, args=(self._stop,), name="rltemp-breaker", daemon=True).start()

    def _probing(self, stop: threading.Event) -> None:
        while not stop.wait(self._pause()):
            try:
                seconds = self._probe()
            except RequestRefusedError as error:
                return self._change("refused", str(error))
            except Exception:  # a failed exchange, or an answer that is none: this thread has to go on asking
                seconds = float("inf")
            if stop.is_set():
                return None
            if seconds <= self._patience.slowest:
                return self._change("closed", "it answers")
            self._doublings += 1
        return None

    def _pause(self) -> float:
        """Seconds to the next probe: full jitter, below a bound that doubles."""
        patience = self._patience
        return self._draw(0.0, min(patience.longest, patience.shortest * 2.0 ** min(self._doublings, 30)))
