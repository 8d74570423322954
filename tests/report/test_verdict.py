"""The verdict: which methods cannot be told apart from the best, and when seeds are too few to tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rltemp.experiments import statistics
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import MethodResult
from rltemp.report.verdict import EQUAL, UNKNOWN, WORSE, overall_verdict, standing, verdict

NOISE = np.random.default_rng(0).normal(0, 0.01, 10)


def result(rule: str, accuracy: float, seeds: int = 10, noise: float = 0.0, **more: object) -> MethodResult:
    row = accuracy + noise * NOISE[:seeds] - noise * NOISE[:seeds].mean()
    return MethodResult(rule, row, row, **more)  # type: ignore[arg-type]


def test_the_best_is_named_with_those_that_are_like_it():
    found = [result("none", 0.7), result("dtkd", 0.899, noise=1), result("universal", 0.9)]
    assert standing(found) == {"universal": EQUAL, "none": WORSE, "dtkd": EQUAL}
    assert verdict(found) == [
        "universal has the best accuracy, 90.00 %: dtkd cannot be told apart from it; none is worse."
    ]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((), "it is the only method"),
        ((result("b", 0.8999, noise=1),), "no other method can be told apart from it"),
        ((result("b", 0.7), result("c", 0.6)), "b and c are worse"),
        (tuple(result(name, 0.7) for name in "bcde"), "all others are worse"),
        ((result("b", 0.7), result("c", 0.6, degraded=True)), "b is worse; c is not compared with it"),
    ],
)
def test_the_sentence_says_what_there_is_of_the_others(others: tuple[MethodResult, ...], said: str):
    assert verdict([*others, result("a", 0.9)]) == [f"a has the best accuracy, 90.00 %: {said}."]


def test_a_method_of_other_seeds_is_not_compared():
    assert standing([result("a", 0.9), result("b", 0.8, seeds=9)]) == {"a": EQUAL, "b": UNKNOWN}


def test_the_best_loss_is_the_smallest_and_one_without_a_number_is_last():
    losses = {"a": 2.0, "b": 1.5, "c": math.nan}
    found = [
        result(name, 0.5, measures={"negative_log_likelihood": np.full(10, loss)}) for name, loss in losses.items()
    ]
    assert standing(found, LOSS) == {"b": EQUAL, "a": WORSE, "c": UNKNOWN}
    assert verdict(found, LOSS)[0].startswith("b has the best loss, 1.5000 nats a token: a is worse; c is not")
    assert verdict(found[2:], LOSS) == ["No method has a loss that is a finite number."]


@pytest.mark.parametrize(("seeds", "methods", "enough"), [(4, 7, 8), (8, 8, 9), (1, 2, 6), (5, 2, 6)])
def test_too_few_seeds_are_called_that_and_how_many_it_takes(seeds: int, methods: int, enough: int):
    def lines(count: int) -> list[str]:
        row = NOISE if count > len(NOISE) else NOISE[:count]
        return verdict([MethodResult(str(place), row[:count] + place, row[:count]) for place in range(methods)])

    words = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    assert lines(seeds)[0].endswith("no other method can be told apart from it."), "whatever the differences"
    assert f"{words} too few to tell methods apart: it takes {enough}." in lines(seeds)[1]
    assert len(lines(enough)) == 1
    assert "are worse" in lines(enough)[0] or "is worse" in lines(enough)[0]
    assert len(lines(enough - 1)) == 2


def test_four_seeds_and_six_others_say_why_p_is_no_smaller():
    found = [MethodResult(str(place), NOISE[:4] + place, NOISE[:4]) for place in range(7)]
    assert "no p value can be below 0.125, or 0.75 corrected for 6 comparisons." in verdict(found)[1]


def test_a_method_as_good_as_the_best_is_rarely_called_worse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_interval", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(statistics, "seeds_needed", lambda *_: 0)
    rng, worse, beaten, comparisons = np.random.default_rng(1), 0, 0, 300
    for _ in range(comparisons):
        rows = rng.normal(0.9, 0.01, (4, 9)) - np.array([0, 0, 0, 0.05])[:, None]
        stands = standing([MethodResult(str(place), row, row) for place, row in enumerate(rows)])
        worse += stands["0"] == WORSE
        beaten += stands["3"] == WORSE
    assert 0 < worse <= 0.05 * comparisons + 2 * math.sqrt(0.05 * 0.95 * comparisons)
    assert beaten > 0.9 * comparisons


def test_a_grid_counts_the_points_where_a_rule_is_among_the_best():
    points = [{"a": EQUAL, "b": WORSE, "c": EQUAL}, {"a": WORSE, "b": WORSE, "c": EQUAL}]
    expected = "The best, or not to be told apart from it: c at 2 of 2 points, a at 1, b at 0."
    assert overall_verdict(points) == expected
