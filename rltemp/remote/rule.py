"""A temperature rule that a service has (`rltemp serve`), pulled when a run begins and followed while it trains.

    method = remote_method("http://127.0.0.1:8000", "universal")

A service may never stop or hold up a training. The policy's file is pulled once and runs in this process; a thread asks
for new versions; and a step without a version, because the service has been away from the beginning, is taken under a
closed-form rule and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rltemp.errors import BadInputError, ExchangeFailedError, TrainingStoppedError
from rltemp.kd.checks import Bounds, positive
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import load_method
from rltemp.remote.http_client import HttpClient
from rltemp.remote.poller import Poller, log
from rltemp.remote.remote_policy import ActionClient, RemotePolicy
from rltemp.remote.served_model import ServedModel, pull
from rltemp.rules.adapter import learns
from rltemp.rules.published_methods import reference_method

Mode = Literal["weights", "features"]

START_SECONDS, STEP_SECONDS = 2.0, 0.25
"""How long a run waits for the service before it begins, and how long a step does in features mode."""
PULL_SECONDS = 5.0
"""Of one request on the thread, which nobody waits for."""
FOLLOW_SECONDS = 10.0
"""From one question for a new version to the next."""
REST = 100
"""Steps under the fallback after one whose request failed, in features mode."""
PLAIN = "fixed:4"
"""The fallback where nothing is known of the policy."""


class RemoteRule(TemperatureRule):
    """The temperatures of a model at a service, or a closed-form rule's where there are none.

    Args:
        url: Of the service.
        model: Its name there.
        mode: "weights": the policy's file is pulled and used here, and no step waits for anything. "features": every
            step sends its features, and waits for the actions. A closed-form rule is used here either way.
        token_file: A file with the token that the service asks for.
        fallback: The rule that stands in; by default the policy's reference, or fixed:4 where none is known yet.
        deadline: Seconds that the run waits for the service before it begins (2), and in each step of features mode
            (0.25).
        strict: Raise TrainingStoppedError in place of a fallback.
        follow: Seconds from one question for a new version to the next.

    Attributes:
        limits: Lowest and highest temperature of the policy, None while it is not known.
        seen: Counts: `steps`; `calls` for actions, in features mode, and how many were `failures`; `fallback_steps`.
        versions: Steps by the version that gave their temperatures.

    A new version takes effect from one step to the next. Temperatures are those of `rltemp.Policy`, with the same
    gradient. A process that is forked goes on under the version that it has.

    Raises:
        BadInputError: Where the URL, the token file or the fallback cannot be used, or the service says that the model
            or the token is not known.
        TrainingStoppedError: With `strict`, where the service is away.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        mode: Mode = "weights",
        token_file: Path | None = None,
        fallback: str | None = None,
        deadline: float | None = None,
        strict: bool = False,
        follow: float = FOLLOW_SECONDS,
    ) -> None:
        if mode not in ("weights", "features"):
            raise BadInputError(f"a controller's mode is weights or features; got {mode!r}")
        if deadline is not None:
            positive(deadline, "a controller", "deadline")
        self.model, self.mode, self.strict = model, mode, strict
        self.given_fallback = None if fallback is None else _closed_form(fallback)
        self.seen = dict.fromkeys(("steps", "calls", "failures", "fallback_steps"), 0)
        self.versions: Counter[str] = Counter()
        self._name = f"controller {url} ({model})"
        self._served: ServedModel | None = None
        self._plain = reference_method(PLAIN)
        self._failure, self._rest, self._version = "", 0, ""
        self._client = HttpClient(url, token_file)
        self._actions = ActionClient(self._client, model, deadline or STEP_SECONDS)
        meanwhile = f"The run goes on under the version that it has; without one under {self.fallback.name}"
        self._poller = Poller(self._name, self._pull, follow, f"{meanwhile}, whose loss weights it then keeps")
        self._poller.start(deadline or START_SECONDS, strict)

    @property
    def limits(self) -> Bounds | None:  # type: ignore[override]  # it changes with the version
        """Lowest and highest temperature of the policy, where it is known."""
        return None if self._served is None else self._served.method.rule.limits

    @property
    def fallback(self) -> Method:
        """The method whose rule stands in."""
        if self.given_fallback is not None:
            return self.given_fallback
        return self._plain if self._served is None else self._served.reference

    @property
    def per_sample(self) -> bool:  # type: ignore[override]
        """As the model's rule and the fallback are."""
        return self.fallback.rule.per_sample and (self._served is None or self._served.method.rule.per_sample)

    @property
    def uses_labels(self) -> bool:  # type: ignore[override]
        """As the model's rule or the fallback does."""
        return self.fallback.rule.uses_labels or (self._served is not None and self._served.method.rule.uses_labels)

    @property
    def checked(self) -> bool:  # type: ignore[override]
        """As the model's rule and the fallback are."""
        return self.fallback.rule.checked and (self._served is None or self._served.method.rule.checked)

    def method(self, name: str) -> Method:
        """What a run under this rule minimises: the model's loss weights, or the fallback's where it is away."""
        served = self._served
        return replace(self.fallback if served is None else served.method, rule=self, name=name)

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]` for signals of any leading shape."""
        self.seen["steps"] += 1
        served = self._served  # read once: a new version comes between steps
        if served is not None and not self._rest:
            try:
                found = self._answer(served, signals)
            except ExchangeFailedError as error:
                self._failed(str(error))
            else:
                self.versions[served.version] += 1
                self._version = served.version
                return found
        self._rest = max(self._rest - 1, 0)
        if self.strict:
            raise TrainingStoppedError(f"{self._name}: {self._failure or self._poller.reason} (strict: no fallback)")
        self.seen["fallback_steps"] += 1
        return self.fallback.rule(signals)

    def state(self) -> dict[str, Any]:
        """All counts, for a checkpoint."""
        return {**self.seen, "versions": dict(self.versions)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state` gave in an earlier part of the run."""
        self.seen = {name: int(state[name]) for name in self.seen}
        self.versions = Counter({str(name): int(steps) for name, steps in state["versions"].items()})

    def inexact(self) -> str:
        """Why a run that was resumed cannot be repeated; empty where all steps were under one version."""
        if not self.seen["fallback_steps"] and len(self.versions) <= 1:
            return ""
        return f"a controller: {len(self.versions)} versions, {self.seen['fallback_steps']} steps without one"

    def counts(self) -> dict[str, Any]:
        """What `result.json` says."""
        file = self._served.file if self._served else None
        what = {"model": self.model, "mode": self.mode, "sha256": file.sha256 if file else None}
        return {**what, **self.state(), "away": self._poller.reason != ""}

    def timing(self) -> dict[str, float]:
        """What the clock says: the seconds that steps have waited for actions, in features mode."""
        return {"controller_seconds": self._actions.seconds} if self.mode == "features" else {}

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows, by tag."""
        away = bool(self._failure or self._poller.reason)
        found = {"controller/fallback_steps": float(self.seen["fallback_steps"]), "controller/open": float(away)}
        if self._actions.last_seconds:
            found["controller/round_trip_ms"] = 1000 * self._actions.last_seconds
        if self._version.isdigit():
            found["controller/policy_version"] = float(self._version)
        return found

    def close(self) -> None:
        """End the thread, which otherwise ends with this object, and the connections."""
        self._poller.close()
        self._client.close()

    def _pull(self) -> None:
        """Take up a new version, on the poller's thread."""
        found = pull(self._client, self.model, self._served, PULL_SECONDS)
        if found is self._served:
            return
        if self.mode == "features" and found.file is not None:
            rule = RemotePolicy(found.file, found.version, self._actions)
            found = replace(found, method=replace(found.method, rule=rule))
        self._served = found

    def _answer(self, served: ServedModel, signals: Signals) -> Temperatures:
        asks = isinstance(served.method.rule, RemotePolicy)
        self.seen["calls"] += asks
        found = served.method.rule(signals)
        if asks and self._failure:
            self._failure = ""
            log.warning(f"{self._name}: it answers again")
        return found

    def _failed(self, reason: str) -> None:
        """Leave the service alone for a while, after a request for actions that failed."""
        self.seen["failures"] += 1
        self._rest, first = REST, not self._failure
        self._failure = reason
        if first and not self.strict:
            log.warning(f"{self._name}: {reason}. {self.fallback.name} stands in, {REST} steps at a time")


def remote_method(url: str, model: str, **options: Any) -> Method:
    """Return what a run minimises under a model at a service; arguments and errors as `RemoteRule` has them.

    The loss weights are those of the policy's reference, or of the rule; where the service is away when the run begins
    they are the fallback's, to the run's end.
    """
    return RemoteRule(url, model, **options).method(model)


def _closed_form(spec: str) -> Method:
    method = load_method(spec)
    if not isinstance(method, Method) or learns(method):
        raise BadInputError(f"a fallback needs temperatures that it does not learn; {spec!r} has none such")
    return method
