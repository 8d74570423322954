"""A controller's model as it is known here, and the thread that looks for what has become of it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError
from rltemp.kd.method import Method
from rltemp.policy.rule import Policy
from rltemp.remote.answers import Controller, Description
from rltemp.remote.asked import Ask, AskedPolicy, asked_rule, sample_question

Mode = Literal["features", "weights"]

LOOK_DEADLINE = 2.0
"""Seconds for what no step waits for: descriptions and policy files, and the first of them before a run begins."""


@dataclass(frozen=True)
class Known:
    """What a controller has said of its model.

    Args:
        version: Its name.
        sha256: Of the policy; None for a rule.
        method: With the rule that gives the model's temperatures, and the loss weights that go with it.
        reference: The closed-form method that the model moves around, or is.
        asks: Whether the rule asks the controller.
    """

    version: str
    sha256: str | None
    method: Method
    reference: Method
    asks: bool


class Followed:
    """A model, looked at now and then by threads that no step waits for.

    Args:
        controller: To look at it, not the one that steps use.
        mode: As `rltemp.remote.rule.RemoteRule` has it.
        ask: For the rules that ask.

    Attributes:
        known: The latest that is known, replaced as a whole; None before the first good look.
    """

    def __init__(self, controller: Controller, mode: Mode, ask: Ask) -> None:
        self.known: Known | None = None
        self._controller, self._mode, self._ask = controller, mode, ask

    def look(self) -> None:
        """Find out what the model is now.

        Raises:
            ExchangeFailedError: Where there is no good answer.
            RequestRefusedError: Where the controller calls the question a mistake.
        """
        try:
            self._look()
        except (ExchangeFailedError, RequestRefusedError):
            raise
        except Exception as error:  # whatever a service makes of the readers: no reason to end a run
            raise ExchangeFailedError(f"what it says of the model cannot be used ({type(error).__name__})") from error

    def probe(self, deadline: float) -> float:
        """Look, and ask as a step would; returns the seconds that the latter took.

        Raises:
            ExchangeFailedError: As `look` does, and where there is no answer within `deadline` seconds.
            RequestRefusedError: As `look` does.
        """
        self.look()
        if self.known is None or not self.known.asks:
            return 0.0
        question = sample_question(self.known.method.rule)
        began = time.perf_counter()
        self._controller.infer(*question, deadline)
        return time.perf_counter() - began

    def close(self) -> None:
        """End its connection."""
        self._controller.exchange.close()

    def _look(self) -> None:
        known = self.known
        if self._mode == "weights" and known is not None:
            if known.sha256 is not None:  # a closed-form rule stays what it is
                self._pull(known.sha256)
            return
        found = self._controller.describe(LOOK_DEADLINE)
        if self._mode == "weights" and found.rule is None:
            self._pull(None)
        elif known is None or (known.version, known.sha256) != (found.version, found.sha256):
            self.known = self._made(found)

    def _pull(self, sha256: str | None) -> None:
        found = self._controller.policy(sha256, LOOK_DEADLINE)
        if found is None:
            return
        file, version = found
        try:
            policy = Policy.of(file, self._controller.model)
        except BadInputError as error:
            raise ExchangeFailedError(f"its policy is refused: {error}") from None
        method = policy.method(self._controller.model)
        self.known = Known(version, file.sha256, method, policy.reference, asks=False)

    def _made(self, found: Description) -> Known:
        """A rule, or a model that is asked in every step."""
        name, asks = self._controller.model, self._mode == "features"
        if found.rule is not None:
            rule = asked_rule(self._ask) if asks else found.rule.rule
            return Known(found.version, None, replace(found.rule, rule=rule, name=name), found.rule, asks)
        assert found.manifest is not None  # a policy has one
        policy = AskedPolicy(found.manifest, self._ask)
        return Known(found.version, found.sha256, policy.method(name), policy.reference, asks)


class Follower:
    """A thread that calls `look` every so many seconds, or when it is woken, until its owner is gone.

    Args:
        look: A method of the owner, whom the thread does not keep alive.
        seconds: Between two looks; None: only when woken.
    """

    def __init__(self, look: Callable[[], None], seconds: float | None) -> None:
        self._look, self._seconds = weakref.WeakMethod(look), seconds
        self._start()

    def here(self) -> None:
        """Start anew after a fork, which has none of its parent's threads."""
        if self._process != os.getpid():
            self._start()

    def wake(self) -> None:
        """Have it look now."""
        self._wake.set()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._wake.set()

    def _start(self) -> None:
        self._process, self._wake, self._closed = os.getpid(), threading.Event(), threading.Event()
        arguments = self._look, self._seconds, self._wake, self._closed
        threading.Thread(target=_follow, args=arguments, name="rltemp-follow", daemon=True).start()


def _follow(
    reference: weakref.WeakMethod[Callable[[], None]],
    seconds: float | None,
    wake: threading.Event,
    closed: threading.Event,
) -> None:
    while True:
        wake.wait(seconds)
        wake.clear()
        look = reference()
        if look is None or closed.is_set():
            return
        look()
        del look
