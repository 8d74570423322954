"""Why a policy sets the temperatures it sets: what they go with, and which of its features decide them.

`explain` trains students under the policy and records what it saw and answered. `relations` asks whether harder samples
get higher temperatures; one feature at a time is shuffled to see what depends on it. `rltemp.report` writes it down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.errors import BadInputError
from rltemp.experiments.options import SELECTION_SEED, ExplainOptions
from rltemp.experiments.recorder import Recorder, teacher_margin
from rltemp.experiments.statistics import Paired, mean_and_error, paired_difference
from rltemp.experiments.students import steps_of_a_run, train_method
from rltemp.kd.divergences import log_softmax
from rltemp.kd.losses import cross_entropy
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperature_rule import per_batch
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import is_policy, named_policy
from rltemp.policy.features import featurize
from rltemp.policy.policy_file import read_policy
from rltemp.policy.rule import Policy
from rltemp.rules.difficulty import random

POINTS = 20_000
"""About how many samples of each student's run are kept."""
LEAST_BATCH = 8
"""Ranks within a batch are taken where at least so many of its samples are kept."""
LEAST_WEIGHT = 1e-12
"""What a weight of zero counts as in logarithms."""
THIRDS = ("first third", "middle third", "last third")
ANSWERS = ("student", "teacher", "weight")
NAMES = {
    "student": "student temperature",
    "teacher": "teacher temperature",
    "weight": "weight",
    "reference_student": "student temperature, reference alone",
    "reference_teacher": "teacher temperature, reference alone",
}

Trace = Mapping[str, NDArray[np.float64]]
"""What was recorded, by name, each `[S, steps, k]`: k samples of every step of S students.

`progress` 0..1; `margin`: the teacher's first minus its second logit, in standard deviations; `confidence`: the
student's largest probability; `agreement`: 1 where both choose the same class; `difficulty`: the student's loss at the
label, in nats; `student_sharpness` and `teacher_sharpness`: largest minus mean logit; `student`, `teacher`, `weight`:
the answer; `reference_student`, `reference_teacher`: what the reference rule alone answers.
"""


def explain(
    options: ExplainOptions, problem: Problem, probe: Probe, on_progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], Trace]:
    """Train every student; return what was found, as the result holds it, and the trace of what was recorded.

    Args:
        options: Of the command.
        problem: The task, loaded.
        probe: The policy, from `policy_to_explain`.
        on_progress: Told after each step what is in training, the steps taken, and all of them.
    """
    stack, steps = options.stack or problem.stack_size, steps_of_a_run(problem)
    watched = range(options.first_seed, options.first_seed + options.seeds)
    compared = range(options.first_seed, options.first_seed + options.importance_seeds)
    shuffled = probe.features if compared else []
    trained = [len(watched), *[len(compared)] * (len(shuffled) + bool(shuffled))]
    total, taken = steps * sum(-(-count // stack) for count in trained), itertools.count(1)

    def train(name: str, seeds: Sequence[int], method: Method, *recorders: Recorder) -> NDArray[np.float64]:
        def told() -> None:
            on_progress(name, next(taken), total)

        found = train_method(problem, name, seeds, stack, told, lambda run: method, recorders)
        return 100 * found.test_accuracy

    recorder, policy = Recorder(probe.columns, steps, POINTS), options.rules[0]
    accuracy = mean_and_error(train(policy, watched, probe.policy.method(policy), recorder))[0]
    intact = train(policy, compared, probe.policy.method(policy)) if shuffled else np.empty(0)
    importance = {
        name: paired_difference(train(f"{name} shuffled", compared, probe.shuffled(name)), intact) for name in shuffled
    }
    trace = {name: value.numpy() for name, value in recorder.samples().items()}
    result = {
        "task": problem.task.described(),
        "policy": policy,
        "reference": probe.policy.manifest.reference,
        "teacher_accuracy": problem.teacher_accuracy,
        "students": options.seeds,
        "accuracy_percent": accuracy,
        "relations": relations(trace),
        "course": course(trace),
        "importance": ranked(probe.features, recorder.means(), importance),
        "importance_students": options.importance_seeds,
    }
    return result, trace


def policy_to_explain(options: ExplainOptions) -> Probe:
    """The policy that was asked for; refuse what cannot be explained before anything is trained.

    Raises:
        BadInputError: Where there is not one policy, or the seeds are out of range.
    """
    if len(options.rules) != 1 or not is_policy(options.rules[0]):
        raise BadInputError(f"explain needs --rules with one policy file; got {' '.join(options.rules) or 'nothing'}")
    if options.first_seed + max(options.seeds, options.importance_seeds) > SELECTION_SEED:
        raise BadInputError(f"seeds must be below {SELECTION_SEED}; give a smaller --first-seed")
    return Probe(*named_policy(options.rules[0]))


class Probe:
    """A policy whose answer can be had with one feature shuffled.

    Args:
        path: The policy file.
        sha256: That it must have, where one is pinned.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.policy = Policy.load(path, sha256)
        self.features = [feature.name for feature in self.policy.manifest.features]
        self._weights = read_policy(path, sha256=sha256).weights

    def answer(self, signals: Signals, reference: Temperatures, feature: str | None = None) -> Temperatures:
        """What the policy answers, `[...]`, where `feature` comes from another sample of the batch.

        Progress is the same for a whole batch, so it is drawn from the whole run instead. Who gets whose depends on
        the batch's teacher logits and its progress alone: no state, the same for every stack size.
        """
        seen = featurize(signals, self.features)
        if feature is not None:
            place = self.features.index(feature)
            seen[..., place] = _moved(signals, seen[..., place], place, across_run=feature == "progress")
        return self.policy.moved(signals, reference, seen, self.policy.action_of(seen))

    def shuffled(self, feature: str) -> Method:
        """The policy's method, with one feature shuffled in all that it sees."""
        return replace(
            self.policy.method(f"{feature} shuffled"),
            rule=per_batch(lambda signals: self.answer(signals, self.reference(signals), feature)),
        )

    def reference(self, signals: Signals) -> Temperatures:
        """What the reference rule answers, `[...]`."""
        rule: Any = self.policy.reference.rule
        found: Temperatures = rule(signals)
        return found

    def columns(self, signals: Signals, temperatures: Temperatures | None) -> dict[str, Tensor]:
        """What is recorded of a step (`rltemp.experiments.recorder.Columns`): what a `Trace` holds, and `changes`."""
        if temperatures is None:
            return {}
        reference = self.reference(signals)
        answers = {name: getattr(temperatures, name) for name in ANSWERS}
        alone = {"reference_student": reference.student, "reference_teacher": reference.teacher}
        return {**observed(signals), **answers, **alone, **self.changes(signals)}

    @torch.no_grad()
    def changes(self, signals: Signals) -> dict[str, Tensor]:
        """How far the logarithm of each answer moves where a feature is shuffled, `[...]` by `change_name`."""
        reference, found = self.reference(signals).detach(), {}
        intact = self.answer(signals, reference)
        for feature in self.features:
            moved = self.shuffled(feature).rule(signals)
            for name in ANSWERS:
                one, other = (getattr(each, name).clamp(min=LEAST_WEIGHT).log() for each in (moved, intact))
                found[change_name(feature, name)] = (one - other).abs()
        return found


def change_name(feature: str, answer: str) -> str:
    """The column of an answer's change where a feature is shuffled."""
    return f"{feature} shuffled: {answer}"


@torch.no_grad()
def observed(signals: Signals) -> dict[str, Tensor]:
    """What a `Trace` holds of signals with labels beside the answers, `[...]` each."""
    student, teacher = full_precision(signals.student_logits.detach()), full_precision(signals.teacher_logits)
    return {
        "progress": signals.full(signals.progress),
        "margin": teacher_margin(signals),
        "confidence": log_softmax(student).amax(-1).exp(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).float(),
        "difficulty": cross_entropy(signals).detach(),
        "student_sharpness": student.amax(-1) - student.mean(-1),
        "teacher_sharpness": teacher.amax(-1) - teacher.mean(-1),
    }


def _moved(signals: Signals, column: Tensor, seed: int, across_run: bool) -> Tensor:
    """A feature `[...]` with each sample's from its neighbour in a random order, or drawn evenly from -1 to 1."""
    drawn = random(1.0, math.e, seed=3_000 + seed)(signals).student.log()
    if across_run:
        return (2 * drawn - 1).to(column.dtype)
    order = signals.groups(drawn).argsort(-1)
    source = order.scatter(-1, order, order.roll(1, -1))
    return signals.groups(column).gather(-1, source).reshape(column.shape)


def thirds(trace: Trace) -> list[Trace]:
    """The trace of each third of the steps at which the policy was asked: all, but where a warm-up leaves some out."""
    steps = np.arange(trace["progress"].shape[1])
    if len(steps) < len(THIRDS):
        raise BadInputError(f"thirds of a run need at least 3 steps under the policy; this one has {len(steps)}")
    return [{name: values[:, here] for name, values in trace.items()} for here in np.array_split(steps, len(THIRDS))]


def geometric_mean(values: NDArray[np.float64]) -> float:
    """Of all values; a zero counts as `LEAST_WEIGHT`."""
    return float(np.exp(np.log(np.maximum(values, LEAST_WEIGHT)).mean()))


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation along the last axis, `[..., N]` to `[...]`; 0 where one of the two is constant."""
    first, second = (rankdata(values, axis=-1) for values in (x, y))
    first, second = (ranks - ranks.mean(-1, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    found: NDArray[np.float64] = (first * second).sum(-1) / np.where(scale > 0, scale, 1.0)
    return found


def relations(trace: Trace) -> list[dict[str, Any]]:
    """Rank correlation of every answer with the difficulty: a row an answer and scope, an entry a third of the run.

    Over `all samples` of the third, where the course of the run takes part, and `within a batch`, where it does not:
    each a mean over students with its 95 % interval over students.
    """
    rows = []
    for scope, name in itertools.product(("all samples", "within a batch"), NAMES):
        if scope == "within a batch" and trace["student"].shape[-1] < LEAST_BATCH:
            continue
        if name.startswith("reference") and np.ptp(trace[name]) == 0:
            continue
        found = [asdict(_relation(third["difficulty"], third[name], scope)) for third in thirds(trace)]
        rows.append({"answer": name, "scope": scope, "thirds": found})
    return rows


def course(trace: Trace) -> list[dict[str, float]]:
    """Means of every third of the run: geometric ones of temperatures and weight, arithmetic ones of the rest."""
    recorded = {name: values for name, values in trace.items() if not name.partition(" shuffled: ")[1]}
    return [
        {name: geometric_mean(x) if name in NAMES else float(x.mean()) for name, x in third.items()}
        for third in thirds(recorded)
    ]


def ranked(
    features: Sequence[str], means: Mapping[str, float], accuracies: Mapping[str, Paired]
) -> list[dict[str, Any]]:
    """A row a feature: mean changes of the answers' logarithms, and of accuracy in points; the largest first."""
    rows: list[dict[str, Any]] = []
    for feature in features:
        pair = accuracies.get(feature)
        answers = {name: means[change_name(feature, name)] for name in ANSWERS}
        rows.append({"feature": feature, **answers, "accuracy_points": asdict(pair) if pair else None})
    return sorted(rows, key=lambda row: -row["student"] - row["teacher"])


def _relation(difficulty: NDArray[np.float64], answer: NDArray[np.float64], scope: str) -> Paired:
    """Rank correlation of `[S, steps, k]` values, mean over students."""
    if scope == "all samples":
        found = rank_correlation(difficulty.reshape(len(difficulty), -1), answer.reshape(len(answer), -1))
    else:
        found = rank_correlation(difficulty, answer).mean(-1)
    return paired_difference(found, np.zeros(len(found)))
