"""Why a policy sets the temperatures it sets: the `explain` command's work.

It trains students under the policy and keeps what it saw and answered (`rltemp.experiments.policy_trace`), asks whether
harder samples get higher temperatures (`relations`), shuffles one feature at a time to see what hangs on it, and writes
it all down (`rltemp.report.explain_page`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rltemp.data.problem import Problem
from rltemp.errors import BadInputError
from rltemp.experiments.compare import SELECTION_SEED, default_stack, train_method
from rltemp.experiments.policy_trace import ANSWERS, NAMES, Probe, Trace, Watch, geometric_mean, thirds
from rltemp.experiments.recorded_controls import always
from rltemp.experiments.statistics import Paired, mean_and_error, paired_difference
from rltemp.io.console import Bar, say, show_next
from rltemp.loading import is_policy, named_policy
from rltemp.report.comparison import reporter
from rltemp.report.explain_page import (
    importance_words,
    relation_words,
    save_explanation_picture,
    write_explanation,
)
from rltemp.training.options import command_line

if TYPE_CHECKING:
    from rltemp.cli.compare import Explain

LEAST_BATCH = 8
"""Ranks within a batch are taken where at least so many of its samples are kept."""


def explain(options: Explain) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    probe = _probe(options)
    problem, out = options.problem(), options.folder()
    options.open()
    started = time.monotonic()
    with Bar("explain") as bar:
        watch, accuracy, importance = _train(options, problem, probe, bar)
    trace = watch.trace()
    result: dict[str, Any] = {
        "task": asdict(problem.task),
        "policy": options.rules[0],
        "reference": probe.policy.manifest.reference,
        "teacher_accuracy": problem.teacher_accuracy,
        "students": options.seeds,
        "accuracy_percent": accuracy,
        "relations": relations(trace),
        "course": course(trace),
        "importance": ranked(probe.features, watch.changes(), importance),
        "importance_students": options.importance_seeds,
    }
    save_explanation_picture(
        out / "why.png", trace, f"{problem.task.name}: {options.rules[0]} ({options.seeds} students)"
    )
    write_explanation(out, result, command_line(options))
    return options.finish(result, started)


def show_explanation(result: Mapping[str, Any], out: Path) -> None:
    """Print what was found, where its files are and what to type next."""
    for line in [*relation_words(result["relations"]), *importance_words(result["importance"])]:
        say(line)
    say(f"Read {out / 'why.md'}, look at {out / 'why.png'}.")
    show_next(out)


def _probe(options: Explain) -> Probe:
    """The policy that was asked for; refuse what cannot be explained before anything is trained."""
    if len(options.rules) != 1 or not is_policy(options.rules[0]):
        raise BadInputError(f"explain needs --rules with one policy file; got {' '.join(options.rules) or 'nothing'}")
    if options.first_seed + max(options.seeds, options.importance_seeds) > SELECTION_SEED:
        raise BadInputError(f"seeds must be below {SELECTION_SEED}; give a smaller --first-seed")
    return Probe(*named_policy(options.rules[0]))


def _train(options: Explain, problem: Problem, probe: Probe, bar: Bar) -> tuple[Watch, float, dict[str, Paired]]:
    """Train what is watched and what is shuffled; return the watch, its students' accuracy in percent, the changes."""
    stack, steps = options.stack or default_stack(problem), problem.task.recipe.steps(len(problem.dataset.train))
    features = probe.features if options.importance_seeds else []
    seeds = range(options.first_seed, options.first_seed + options.importance_seeds)
    watched = range(options.first_seed, options.first_seed + options.seeds)
    trained = [len(watched), *[len(seeds)] * (len(features) + bool(features))]
    told = _counter(bar, steps * sum(-(-count // stack) for count in trained))
    watch = Watch(probe, steps)
    arm = train_method(problem, options.rules[0], watched, stack, told, maker=watch.begin)
    importance = {}
    if features:
        intact = train_method(problem, options.rules[0], seeds, stack, told).test_accuracy
        for feature in features:
            maker = always(probe.shuffled(feature))
            other = train_method(problem, f"{feature} shuffled", seeds, stack, told, maker=maker)
            importance[feature] = paired_difference(100 * other.test_accuracy, 100 * intact)
    return watch, mean_and_error(100 * arm.test_accuracy)[0], importance


def _counter(bar: Bar, total: int) -> Callable[[str], None]:
    """Called after each step with the name of what is in training."""
    tell, taken = reporter(bar), itertools.count(1)
    return lambda name: tell(name, next(taken), total)


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
        found = [asdict(_relation(part["difficulty"], part[name], scope)) for part in thirds(trace)]
        rows.append({"answer": name, "scope": scope, "thirds": found})
    return rows


def course(trace: Trace) -> list[dict[str, float]]:
    """Means of every third of the run: geometric ones of temperatures and weight, arithmetic ones of the rest."""
    return [
        {name: geometric_mean(x) if name in NAMES else float(x.mean()) for name, x in third.items()}
        for third in thirds(trace)
    ]


def ranked(
    features: Sequence[str], changes: NDArray[np.float64], accuracies: Mapping[str, Paired]
) -> list[dict[str, Any]]:
    """A row a feature: changes of the answers' logarithms, `[F, 3]`, and of accuracy in points; the largest first."""
    rows: list[dict[str, Any]] = []
    for feature, change in zip(features, changes, strict=True):
        pair = accuracies.get(feature)
        answers = dict(zip(ANSWERS, map(float, change), strict=True))
        rows.append({"feature": feature, **answers, "accuracy_points": asdict(pair) if pair else None})
    return sorted(rows, key=lambda row: -row["student"] - row["teacher"])


def _relation(difficulty: NDArray[np.float64], answer: NDArray[np.float64], scope: str) -> Paired:
    """Rank correlation of `[S, steps, k]` values, mean over students."""
    if scope == "all samples":
        found = rank_correlation(difficulty.reshape(len(difficulty), -1), answer.reshape(len(answer), -1))
    else:
        found = rank_correlation(difficulty, answer).mean(-1)
    return paired_difference(found, np.zeros(len(found)))
