"""Is a rule worth using on a task? It against what is simple, for about a minute, on validation data; and a verdict.

`run_check` is the whole of it: a comparison as `rltemp compare` makes it, of as many students as the time allows.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from rltemp.data.problem import Problem
from rltemp.errors import BadInputError
from rltemp.experiments.compare import OnProgress, compare
from rltemp.experiments.grid import check_rules, to_choose
from rltemp.experiments.measures import ON_VALIDATION, Quantity
from rltemp.experiments.method_results import Comparison, Row, stored_rows, table_rows
from rltemp.experiments.options import LEAST_CHECKED, CheckOptions
from rltemp.experiments.result_cache import CELLS, ResultCache
from rltemp.experiments.statistics import interval, seeds_needed
from rltemp.io.pool import open_pool
from rltemp.kd.method import NoTeacher
from rltemp.loading import load_method
from rltemp.policy.rule import Policy

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Of all trainings, where no number of students is asked for; the least number may take longer."""
MOST = 128
"""Students for each rule, where no number is asked for: they show a few tenths of a point."""

NONE, MILD, PLAIN = "none", "fixed:1", "fixed:4"
"""What is simple: no teacher, the teacher's predictions as they are, plain distillation."""

ShowProgress = Callable[[Problem, ResultCache], AbstractContextManager[OnProgress]]


def run_check(options: CheckOptions, progress: ShowProgress) -> dict[str, Any]:
    """Check everything, train the students, return the result with its verdict."""
    rules = compared(options.rule)
    check_rules(rules, range(options.seeds or LEAST_CHECKED))
    problem, folder = options.problem(), options.folder() / CELLS
    options.open()
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    found = _train(options, problem, rules, ResultCache(folder), progress)
    rows = table_rows(found.results, [NONE, options.rule], quantity=ON_VALIDATION[found.quantity.name])
    judged = verdict(rows, options.rule)
    result = {
        "task": problem.task.described(),
        "rule": options.rule,
        "seeds": rows[0].n,
        "measured_on": "validation",
        "samples": len(problem.dataset.validation.targets),
        "quantity": found.quantity.name,
        "teacher_accuracy": problem.teacher_accuracy,
        "arms": [{"rule": row.rule, **row.as_json(), "n": row.n, "note": row.note} for row in rows],
        "files": found.files,
        "use": judged.use,
        "verdict": judged.line,
        "seeds_needed": judged.seeds,
    }
    return options.finish(result, started)


def compared(rule: str) -> list[str]:
    """The rules of a check: the simple ones, the reference of a policy, and the one that is judged.

    Raises:
        BadInputError: Where it is no single rule that asks a teacher.
    """
    method = None if to_choose(rule) else load_method(rule)
    if method is None or isinstance(method, NoTeacher):
        raise BadInputError(f"check judges one rule with a teacher, as in universal or dtkd; got {rule!r}")
    reference = [method.rule.manifest.reference] if isinstance(method.rule, Policy) else []
    return [*dict.fromkeys([NONE, MILD, *reference, PLAIN, rule])]


def _train(
    options: CheckOptions, problem: Problem, rules: Sequence[str], cache: ResultCache, progress: ShowProgress
) -> Comparison:
    """Train as many students as are asked for, or twice as many again and again, while that fits into the time."""
    count, spent = options.seeds or LEAST_CHECKED, 0.0
    many = f"{count} students" if options.seeds else f"{LEAST_CHECKED} students or more, for about a minute,"
    log.info(f"Training {many} under each of {', '.join(rules)}.")
    with open_pool(options.workers, None, gpus=float(options.torch_device() == "cuda")) as pool:
        while True:
            began = time.monotonic()
            with progress(problem, cache) as told:
                found = compare(problem, rules, range(count), on_progress=told, cache=cache, pool=pool)
            took = time.monotonic() - began
            spent += took
            # The next round trains at most twice as many as this one did.
            if options.seeds or 2 * count > MOST or spent + 2 * took > SECONDS:
                return found
            count *= 2


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Args:
        use: The rule; `none` is not to distil, and None says that the students are too few to tell.
        line: The same in words, with the numbers that it rests on.
        seeds: How many students for each rule would tell, where these are too few.
    """

    use: str | None
    line: str
    seeds: int | None = None


class Gain(NamedTuple):
    """By how much one rule is better than another, with its 95 % interval: more is better, whatever is measured."""

    mean: float
    low: float
    high: float
    deviation: float

    def words(self, quantity: Quantity) -> str:
        """With its unit."""
        unit = quantity.difference_unit.rpartition(" ")[2]
        return f"{interval(self.mean, self.low, self.high, f'+.{quantity.digits}f')} {unit}"


def gain(row: Row, other: str, sign: int = 1) -> Gain:
    """What a row's rule gains over another; with sign -1 what the other gains over it."""
    pair, sign = row.differences[other], sign * row.quantity.better
    low, high = sorted((sign * pair.low, sign * pair.high))
    return Gain(sign * pair.mean, low, high, pair.deviation)


def verdict(rows: Sequence[Row], rule: str) -> Verdict:
    """Judge a rule by the rows of a check, which have their differences to no teacher and to this rule.

    A rule helps where the interval of its gain over no teacher lies above zero. Where nothing helps, and nothing can
    gain as much as matters, the verdict is not to distil. The judged rule is to be used where it helps, and gains over
    the best simple rule that helps; or where it may gain as much as matters over that one, and cannot lose as much.
    """
    quantity = rows[0].quantity
    over_none = {row.rule: gain(row, NONE) for row in rows if row.rule != NONE}
    over_none = {name: one for name, one in over_none.items() if math.isfinite(one.mean)}
    helps = sorted((name for name, one in over_none.items() if one.low > 0), key=lambda name: -over_none[name].mean)
    if not helps:
        return _without_help(over_none, rows[0])
    simple = next((name for name in helps if name != rule), None)
    first = f"gains {over_none[rule if simple is None else simple].words(quantity)} over no teacher"
    if simple is None:
        return Verdict(rule, f"use it. {rule} {first}; no simple rule is known to help.")
    if rule not in over_none:
        return Verdict(simple, f"use {simple}. It {first}; under {rule} students diverged.")
    ahead = gain(next(row for row in rows if row.rule == simple), rule, -1)
    between = f"{ahead.words(quantity)} over {simple}"
    if rule not in helps or (ahead.low <= 0 and ahead.high < quantity.matters):
        return Verdict(simple, f"use {simple}. It {first}; {rule} gains {between}.")
    both = f"{rule} gains {over_none[rule].words(quantity)} over no teacher, and {between}, the best simple rule"
    if ahead.low > -quantity.matters:
        return Verdict(rule, f"use it. {both}.")
    return _too_few(rows[0], ahead, both)


def _without_help(over_none: Mapping[str, Gain], row: Row) -> Verdict:
    """Where no rule is known to be better than no teacher."""
    quantity = row.quantity
    if not over_none:
        return Verdict(None, "nothing can be told: students diverged. Lower --learning-rate.")
    best = max(over_none, key=lambda name: over_none[name].mean)
    said = f"{best}, the best rule, gains {over_none[best].words(quantity)} over no teacher"
    if all(one.high < quantity.matters for one in over_none.values()):
        return Verdict(NONE, f"do not distil. {said}, and none can gain {_matters(quantity)}.")
    return _too_few(row, over_none[best], said)


def _too_few(row: Row, undecided: Gain, said: str) -> Verdict:
    """Where the interval of a gain holds both what matters and nothing."""
    seeds = max(2 * row.n, seeds_needed(undecided.deviation, row.quantity.matters))
    would = f"--seeds {seeds} would show {_matters(row.quantity)}"
    return Verdict(None, f"{row.n} students are too few to tell; {would}. {said}.", seeds)


def _matters(quantity: Quantity) -> str:
    return f"{quantity.matters:g} {quantity.difference_unit.rpartition(' ')[2]}"


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a check as its `result.json` holds them."""
    return stored_rows(result, result["seeds"], ON_VALIDATION[result["quantity"]])
