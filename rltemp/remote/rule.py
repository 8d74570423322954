"""A temperature rule whose policy is at a controller (`rltemp serve`): asked in every step, or pulled and followed.

    method = remote_method("http://127.0.0.1:8000", "universal")

A controller may never stop or hold up a training: a call has a total deadline, a breaker keeps a service that fails or
is slow from being asked at all, and every step without its answer is taken under a closed-form rule and counted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError, TrainingStoppedError
from rltemp.kd.checks import Bounds, positive
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.loading import load_method
from rltemp.remote.addresses import read_token
from rltemp.remote.answers import Controller
from rltemp.remote.breaker import Breaker, Patience, State
from rltemp.remote.counts import RemoteCounts
from rltemp.remote.followed import Followed, Follower, Mode
from rltemp.remote.wire import Shape
from rltemp.rules.curriculum import LearnedRule
from rltemp.rules.published_methods import reference_method

Tell = Callable[[str], None]

LOCAL_DEADLINE, REMOTE_DEADLINE = 0.05, 0.25
"""Seconds that a call may take where the controller is on this machine, and elsewhere."""
FOLLOW = 10.0
"""Seconds from one look for a new version of pulled weights to the next."""
PLAIN = "fixed:4"
"""What stands in where nothing is known of the policy."""


class RemoteRule(TemperatureRule):
    """The temperatures that a controller's model gives, or a closed-form rule's while it is away.

    Args:
        url: Of the controller.
        model: Its name there.
        mode: "features": the features are computed beside the logits and sent in every step. "weights": the policy
            file is pulled, new versions of it are followed in the background, and no step waits for anything.
        token_file: A file with the token that the controller asks for.
        fallback: The rule that stands in; by default the policy's reference, or fixed:4 where none is known yet.
        deadline: Seconds that a call may take; 0.05 where the URL is this machine's, else 0.25.
        strict: Raise TrainingStoppedError in place of a fallback.
        tell: Told a line when the controller is lost, comes back, or refuses.
        follow: Seconds between looks for new weights.
        patience: When to leave a controller alone, and for how long.

    Attributes:
        limits: Lowest and highest temperature of the policy, None while it is not known.
        seen: What the run has seen of the controller so far.

    A new version takes effect from one step to the next. Temperatures of a policy are those of `rltemp.Policy`, with
    the same gradient; those of a closed-form rule at a controller are constants. Samples of any leading shape, stacks
    and masks work as they do in process.

    Raises:
        BadInputError: Where the URL, the token file or the fallback cannot be used, or the controller says that the
            model or the token is not known.
        TrainingStoppedError: With `strict`, where the controller is away.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        mode: Mode = "features",
        token_file: Path | None = None,
        fallback: str | None = None,
        deadline: float | None = None,
        strict: bool = False,
        tell: Tell = lambda _: None,
        follow: float = FOLLOW,
        patience: Patience | None = None,
    ) -> None:
        token = None if token_file is None else read_token(Path(token_file))
        if mode not in ("features", "weights"):
            raise BadInputError(f"a controller's mode is features or weights; got {mode!r}")
        self.url, self.model, self.mode, self.strict = url, model, mode, strict
        self.given_fallback = None if fallback is None else _closed_form(fallback)
        self.seen = RemoteCounts()
        self._tell, self._why = tell, ""
        self._last_version, self._last_seconds = "", 0.0
        self._waited = self._lost = 0.0
        self._controller, aside = Controller(url, model, token), Controller(url, model, token)
        local = self._controller.exchange.server.loopback
        default = LOCAL_DEADLINE if local else REMOTE_DEADLINE
        self.deadline = default if deadline is None else positive(deadline, "a controller", "deadline")
        self._followed = Followed(aside, mode, self._ask)
        self.breaker = Breaker(self._probe, patience or Patience(self.deadline), self._changed)
        self._begin()
        self._follower = Follower(self._look, follow if mode == "weights" else None)

    @property
    def limits(self) -> Bounds | None:
        """Lowest and highest temperature of the policy, where it is known."""
        known = self._followed.known
        return None if known is None else known.method.rule.limits

    @property
    def fallback(self) -> Method:
        """The method whose rule stands in."""
        if self.given_fallback is not None:
            return self.given_fallback
        known = self._followed.known
        return reference_method(PLAIN) if known is None else known.reference

    def method(self, name: str) -> Method:
        """What a run under this rule minimises: the model's loss weights, or the fallback's where it is away."""
        known = self._followed.known
        return replace(self.fallback if known is None else known.method, rule=self, name=name)

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]` for signals of any leading shape."""
        self._follower.here()
        self.seen.steps += 1
        known = self._followed.known  # read once: a new version comes between steps
        if known is not None and not known.asks:
            self._used(known.version)
            return known.method.rule(signals)
        if known is not None and self.breaker.closed:
            with contextlib.suppress(ExchangeFailedError):
                return known.method.rule(signals)
        if self.strict:
            raise TrainingStoppedError(f"{self._name}: {self._why} (strict: no fallback)")
        self.seen.fallback_steps += 1
        return self.fallback.rule(signals)

    def counts(self) -> dict[str, Any]:
        """What `result.json` says."""
        known = self._followed.known
        what = {"model": self.model, "mode": self.mode, "sha256": None if known is None else known.sha256}
        return {**what, **self.seen.state(), "state": self.breaker.state}

    def timing(self) -> dict[str, float]:
        """What the clock says: seconds that steps have waited for answers, and those of failed and slow calls alone."""
        return {"controller_seconds": self._waited, "controller_seconds_lost": self._lost}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from `seen.state()` of an earlier part of the run."""
        before = RemoteCounts.restored(state)
        before.openings += self.seen.openings  # it may be away already
        self.seen = before

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows, by tag."""
        found = {
            "controller/fallback_steps": float(self.seen.fallback_steps),
            "controller/open": float(self.breaker.state != "closed"),
        }
        if self._last_seconds:
            found["controller/round_trip_ms"] = 1000 * self._last_seconds
        if self._last_version.isdigit():
            found["controller/policy_version"] = float(self._last_version)
        return found

    def close(self) -> None:
        """End all threads and connections."""
        self._follower.close()
        self.breaker.close()
        self._controller.exchange.close()
        self._followed.close()

    def __enter__(self) -> RemoteRule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # it may have failed in its first line
            self.close()

    @property
    def _name(self) -> str:
        return f"controller {self.url} ({self.model})"

    def _begin(self) -> None:
        """Look for the model before the run begins: a mistake ends it here, an outage does not."""
        try:
            self._followed.look()
        except RequestRefusedError as error:
            raise BadInputError(f"{self._name}: {error}. Check --rule, its model, and the token file") from None
        except ExchangeFailedError as error:
            self._why = str(error)
            if self.strict:
                raise TrainingStoppedError(f"{self._name}: {error} (strict: no fallback)") from None
            self.breaker.open(self._why)

    def _ask(
        self, inputs: dict[str, NDArray[Any]], outputs: dict[str, Shape], check: Callable[..., None]
    ) -> dict[str, NDArray[Any]]:
        """Ask in a step, and tell the breaker what came of it."""
        if not all(np.isfinite(values).all() for values in inputs.values()):
            # The controller would call it a mistake; it is the student's, and `rltemp.training.guards` sees to it.
            self._why = "the batch holds numbers that are not finite"
            raise ExchangeFailedError(self._why)
        began = time.perf_counter()
        self.seen.calls += 1
        try:
            version, found = self._controller.infer(inputs, outputs, self.deadline)
            check(**found)
        except (ExchangeFailedError, RequestRefusedError) as error:
            self._spent(time.perf_counter() - began, True)
            self.seen.failures += 1
            self._why = str(error)
            if isinstance(error, RequestRefusedError):
                self.breaker.refused(self._why)
            else:
                self.breaker.failed(self._why)
            raise ExchangeFailedError(self._why) from None
        self._last_seconds = time.perf_counter() - began
        slow = self.breaker.answered(self._last_seconds)
        self._spent(self._last_seconds, slow)
        self.seen.slow += slow
        self._used(version)
        known = self._followed.known
        if known is not None and version != known.version:
            self._follower.wake()  # a look at what it is does not belong into a step
        return found

    def _spent(self, seconds: float, lost: bool) -> None:
        self._waited += seconds
        self._lost += seconds * lost

    def _used(self, version: str) -> None:
        self.seen.used(version)
        self._last_version = version

    def _probe(self) -> float:
        return self._followed.probe(self.deadline)

    def _look(self) -> None:
        """Look for a new version, on the follower's thread, unless the breaker does."""
        if not self.breaker.closed:
            return
        try:
            self._followed.look()
        except RequestRefusedError as error:
            self.breaker.refused(str(error))
        except ExchangeFailedError as error:
            self._why = str(error)
            self.breaker.failed(self._why)

    def _changed(self, state: State, why: str) -> None:
        self.seen.openings += state == "open"
        known = self._followed.known
        local = known is not None and not known.asks
        stand_in = f"version {known.version}, which it gave" if local and known else self.fallback.name
        if state == "closed":
            self._tell(f"{self._name}: it is back")
        elif state == "refused":
            self._tell(
                f"{self._name}: {why}. That is a mistake and no outage: it is not asked again; {stand_in} stands in"
            )
        elif known is None:
            self._tell(f"{self._name}: {why}. The run starts under {stand_in}, whose loss weights it keeps to its end")
        else:
            self._tell(f"{self._name}: {why}. {stand_in} stands in until it is back")


def remote_method(url: str, model: str, **options: Any) -> Method:
    """What a run minimises whose temperatures a controller gives; arguments and errors as `RemoteRule` has them.

    The loss weights are those of the policy's reference, or of the rule; where the controller is away when the run
    begins they are the fallback's, to the run's end.
    """
    return RemoteRule(url, model, **options).method(model)


def _closed_form(spec: str) -> Method:
    method = load_method(spec)
    if not isinstance(method, Method) or isinstance(method.rule, LearnedRule):
        raise BadInputError(f"a fallback needs temperatures that it does not learn; {spec!r} has none such")
    return method
