"""The verdict of a comparison, in one sentence: which methods cannot be told apart from the best.

The best is the method with the best mean on test data. Another one is worse where the permutation test of their paired
differences rejects at 5 % divided by the number of other methods (Bonferroni). So the method that is best in truth is
named, with 95 % confidence, as the best or among those that cannot be told apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rltemp.experiments.measures import ACCURACY, Quantity
from rltemp.experiments.method_results import MethodResult, difference
from rltemp.experiments.statistics import LEVEL, smallest_p

WORSE, EQUAL, UNKNOWN = "worse", "equal", "unknown"
"""Than the best; not told apart from it; not compared with it."""


def standing(
    results: Sequence[MethodResult], quantity: Quantity = ACCURACY, allow_mixed: bool = False
) -> dict[str, str]:
    """How every method stands to the best, which comes first and is `EQUAL`; the others are in the order given.

    Args:
        results: One for each method.
        quantity: What they are compared by.
        allow_mixed: As for `rltemp.experiments.method_results.table_rows`.
    """
    best = max(results, key=lambda one: _worth(one, quantity))
    found, tests = {best.rule: EQUAL}, len(results) - 1
    for other in results:
        if other is not best:
            pair = difference(best, other, allow_mixed, quantity=quantity)
            found[other.rule] = WORSE if pair.p * tests <= LEVEL else EQUAL if pair.n else UNKNOWN
    return found


def verdict(results: Sequence[MethodResult], quantity: Quantity = ACCURACY, allow_mixed: bool = False) -> list[str]:
    """What a comparison says, a sentence a line: the best and its equals; then, where that is so, that seeds are few.

    Arguments as for `standing`.
    """
    stands = standing(results, quantity, allow_mixed)
    best = next(one for one in results if one.rule == next(iter(stands)))
    mean = quantity.scale * float(best.of(quantity).mean())
    if not math.isfinite(mean):
        return [f"No method has a {quantity.name} that is a finite number."]
    has = f"{best.rule} has the best {quantity.name}, {mean:.{quantity.digits}f} {quantity.unit}"
    few = _few(min(len(one.test_accuracy) for one in results), len(results) - 1)
    return [f"{has}: {_others([*stands.items()][1:])}.", *few]


def overall_verdict(points: Sequence[Mapping[str, str]]) -> str:
    """At how many points of a grid each rule is the best, or cannot be told apart from it: one sentence.

    Args:
        points: How every rule, as it was written, stands to the best of each point; see `standing`.
    """
    counts = {rule: sum(one[rule] == EQUAL for one in points) for rule in points[0]}
    (first, most), *others = sorted(counts.items(), key=lambda one: -one[1])
    told = "".join(f", {rule} at {count}" for rule, count in others)
    return f"The best, or not to be told apart from it: {first} at {most} of {len(points)} points{told}."


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    >>> listed("abc")
    'a, b and c'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _others(stands: Sequence[tuple[str, str]]) -> str:
    """What is said of those that are not the best."""
    if not stands:
        return "it is the only method"
    of = {kind: [rule for rule, one in stands if one == kind] for kind in (EQUAL, WORSE, UNKNOWN)}
    if len(of[EQUAL]) == len(stands):
        return "no other method can be told apart from it"
    told = [f"{listed(of[EQUAL])} cannot be told apart from it"] if of[EQUAL] else []
    if of[WORSE]:
        many = len(of[WORSE]) > 3 and not of[UNKNOWN]
        told.append("all others are worse" if many else f"{listed(of[WORSE])} {_are(of[WORSE])} worse")
    if of[UNKNOWN]:
        told.append(f"{listed(of[UNKNOWN])} {_are(of[UNKNOWN])} not compared with it")
    return "; ".join(told)


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _few(n: int, tests: int) -> list[str]:
    """That so few seeds can tell no method apart, whatever their results; nothing where they can."""
    if smallest_p(n) * tests <= LEVEL:
        return []
    enough = next((f": it takes {more}" for more in range(n, 15) if smallest_p(more) * tests <= LEVEL), "")
    corrected = f", or {min(1.0, smallest_p(n) * tests):.3g} corrected for {tests} comparisons" if tests > 1 else ""
    seeds = "1 seed is" if n == 1 else f"{n} seeds are"
    least = f"no p value can be below {smallest_p(n):.3g}{corrected}"
    return [f"{seeds} too few to tell methods apart{enough}. With so few, {least}."]


def _worth(result: MethodResult, quantity: Quantity) -> float:
    mean = float(result.of(quantity).mean())
    return quantity.better * mean if math.isfinite(mean) else -math.inf
