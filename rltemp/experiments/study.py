"""The study: does a policy win over every method, tuned, and is it the temperature of each sample that wins?

`plan` lists the methods, `controls` makes those that need a recording of a policy, and `verdict` says in words what
came out. `rltemp.report.comparison` has them trained and writes the files.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rltemp.data.problem import Problem
from rltemp.errors import BadInputError
from rltemp.experiments.compare import Made
from rltemp.experiments.grid import alternatives, check_baselines, check_rules
from rltemp.experiments.measures import Quantity
from rltemp.experiments.method_results import Comparison, MethodResult, difference, side
from rltemp.experiments.options import SELECTION_SEED, StudyOptions
from rltemp.experiments.recorded_controls import GREEDY, POINTS, RECORDED, makers, recording_columns
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.statistics import Paired, points
from rltemp.experiments.students import Maker, steps_of_a_run, train_method
from rltemp.kd.method import Objective
from rltemp.loading import load_method, with_teacher
from rltemp.training.distill import Distillation
from rltemp.training.identity import fingerprints, rule_identity

log = logging.getLogger(__name__)

CLOSED_FORM = (
    "none",
    "fixed:1|2|3|4|6|8|12|16",
    "fixed:temperature=1|2|4|8,ce_weight=1,kd_weight=4",  # plain KD at the loss weights of DTKD's objective
    "dtkd:1|2|4|8",
    "dtkd_logsumexp:1|2|4|8",
    "dtkd_exact:1|2|4|8",
    "ttm:0.1|0.2|0.3|0.4",
    "wttm:0.1|0.2|0.4|0.8",
    "normkd:1|2|3|4",
    "lskd:1|2|3|4",
    "atkd:kd_weight=2.25|4.5|9|18",
    "idts:0.5|1|2|4",
    "energy:3|4|6|8",
    "cswt:maximum=4|6|8|12",
    "cist:1|2|3|4",
    "entropy:unsure=3|4|6|8",
    "entropy_gate:0.1|0.2|0.4|0.6",
    "tip:0.25|0.5|0.75|1",
    "ctkd:span=5|10|20|40",
    "ctkd_instance:span=5|10|20|40",
    "mkd:2|4|6|8",
    "annealing:5|10|15|20",
    "linear_schedule:4|8|12|16",
    "cosine_schedule:4|8|12|16",
    "step_schedule:4|8|12|16",
    "dkd:1|2|4|8",
    "pesf_kd:1|2|4|8",
    "random:maximum=4|6|10|16",
)
"""Every method, its main constant to be chosen from four values around its paper's; fixed T from eight."""

MEANINGS = {
    "detached": "no gradient through temperatures",
    "shuffled": "its temperatures on other samples of the batch",
    "averaged": "its mean of each batch",
    "weighting": "T = 4, its gradients' lengths",
    "softness": "its temperatures, the lengths of plain KD",
    "constant": "its mean over the whole run",
    "schedule": "its mean of each step, from other runs",
    "marginal": "its temperatures of other runs, drawn at random",
    "greedy": "an oracle: the best temperatures for the next step",
    "greedy_held": "the same oracle at the lengths of plain KD",
}
"""What a control leaves of a policy."""

_PREFIXES = [f"{weight}{name}" for weight in ("", "matched:") for name in (*RECORDED, *GREEDY)]
"""Before a policy's name: the controls that are made from its recording."""

Minus = Callable[[MethodResult, MethodResult], Paired]
"""The difference of two results; see `rltemp.experiments.method_results.difference`."""


def matched_forms() -> tuple[str, ...]:
    """The methods of `CLOSED_FORM` at matched weights, where a loss weight has no meaning and none is tuned."""
    kept = (spec.partition(":kd_weight")[0] for spec in CLOSED_FORM if spec != "none" and ",kd_weight" not in spec)
    return tuple(f"matched:{spec}" for spec in kept)


def plan(policies: Sequence[str], groups: Collection[str]) -> list[str]:
    """Every method of a study, by name, the policies among them."""
    controls = [f"{name}:{policy}" for policy in policies for name in MEANINGS]
    names = [*CLOSED_FORM] if "closed-form" in groups else []
    names += policies
    names += controls if "controls" in groups else []
    names += matched_forms() if "matched" in groups else []
    names += [f"matched:{policy}" for policy in policies] if {"matched", "controls"} & set(groups) else []
    names += [f"matched:{name}" for name in controls] if "controls" in groups else []
    return list(dict.fromkeys(names))


def controls(problem: Problem, options: StudyOptions) -> dict[str, Made]:
    """The controls that are made from a recording of a policy on students that are never reported."""
    chooser = range(SELECTION_SEED, SELECTION_SEED + options.selection_seeds)
    stack, files = options.stack or problem.stack_size, fingerprints(options.rules)
    recordings = {policy: Recorded(policy, chooser, stack) for policy in options.rules}

    def control(policy: str, prefix: str) -> Made:
        determined_by = [prefix, rule_identity(policy, files), [chooser.start, len(chooser), stack]]
        return Made(functools.partial(recordings[policy], f"{prefix}:{policy}"), determined_by)

    return {f"{prefix}:{policy}": control(policy, prefix) for policy in options.rules for prefix in _PREFIXES}


class Recorded:
    """The controls of one policy, which is recorded when the first of them is trained.

    So a study that is gone on with, and has them all, records nothing, and each process that trains one records for
    itself. What is recorded anew is the same to the bit.

    Args:
        policy: As it was asked for.
        seeds: Of the students that it is recorded on.
        stack: How many of them train side by side.
    """

    def __init__(self, policy: str, seeds: Sequence[int], stack: int) -> None:
        self.policy, self.seeds, self.stack = policy, seeds, stack
        self._makers: Mapping[str, Maker] | None = None

    def __call__(self, name: str, run: Distillation) -> Objective:
        """The method of the control `name` for a run."""
        if self._makers is None:
            log.info(f"Recording {self.policy}.")
            recording = record(run.problem, self.policy, self.seeds, self.stack)
            self._makers = makers(self.policy, with_teacher(load_method(self.policy), "a control"), recording)
        return self._makers[name](run)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorded, (self.policy, self.seeds, self.stack)


def record(problem: Problem, policy: str, seeds: Sequence[int], stack: int) -> Recorder:
    """Record what a policy answers to a student for every seed, `stack` at a time."""
    recording = Recorder(recording_columns, steps_of_a_run(problem), max(1, POINTS // min(stack, len(seeds))))
    train_method(problem, policy, seeds, stack, recorders=[recording])
    return recording


def verdict(
    found: Comparison, policies: Sequence[str], groups: Collection[str], students: int, allow_mixed: bool = False
) -> list[str]:
    """What the study says, in plain words, a line each; differences with 95 % intervals, of losses with tokens.

    Args:
        found: The comparison of the methods of `plan`.
        policies: As they were asked for.
        groups: Likewise.
        students: How many chose between alternatives.
        allow_mixed: As for `rltemp.experiments.method_results.table_rows`.
    """
    quantity = found.quantity
    minus = functools.partial(difference, allow_mixed=allow_mixed, quantity=quantity)
    results = {name: found.of(name) for name in found.names}
    rivals = {
        "": CLOSED_FORM if "closed-form" in groups else (),
        "matched:": matched_forms() if "matched" in groups else (),
    }
    lines = []
    for prefix, policy in itertools.product(rivals, policies):
        controls = {name: result for name in MEANINGS if (result := results.get(f"{prefix}{name}:{policy}"))}
        if own := results.get(f"{prefix}{policy}"):
            lines.append(_has(own, quantity))
            lines += _beside_forms(own, [results[name] for name in rivals[prefix]], minus, quantity)
            lines += _beside_controls(own, controls, minus, quantity)
        if same := controls.pop("detached", None):
            lines += [f"{_has(same, quantity)} Like the other controls it lets no gradient through temperatures."]
            lines += _beside_controls(same, controls, minus, quantity)
    return [*lines, *(_budget(specs, students) for specs in rivals.values() if specs)]


def _mean(result: MethodResult, quantity: Quantity) -> float:
    return quantity.scale * float(result.of(quantity).mean())


def _has(result: MethodResult, quantity: Quantity) -> str:
    return f"{result.rule} has {_mean(result, quantity):.{quantity.digits}f} {quantity.unit}."


def _beside_forms(policy: MethodResult, forms: Sequence[MethodResult], minus: Minus, quantity: Quantity) -> list[str]:
    """The best of the methods that the policy may be compared with."""
    alike = [result for result in forms if minus(policy, result).n]
    if not alike:
        return ["  no closed-form method to compare it with: the notes say why."] if forms else []
    best = max(alike, key=lambda result: quantity.better * _mean(result, quantity))
    return [f"  minus {best.rule}, the best closed-form method: {_outcome(minus(policy, best), quantity)}"]


def _beside_controls(
    policy: MethodResult, controls: Mapping[str, MethodResult], minus: Minus, quantity: Quantity
) -> list[str]:
    """A line for every control, and one that sums them up."""
    if not controls:
        return []
    pairs = {name: minus(policy, result) for name, result in controls.items()}
    lines = [f"  minus {name} ({MEANINGS[name]}): {_outcome(pair, quantity)}" for name, pair in pairs.items()]
    better = [name for name, pair in pairs.items() if side(pair) == quantity.better]
    where = {1: "above", -1: "below"}[quantity.better]
    return [
        *lines,
        f"  Its advantage has an interval {where} zero over: {', '.join(better) or 'none of the controls'}.",
    ]


def _outcome(pair: Paired, quantity: Quantity) -> str:
    if not pair.n:
        return "not compared: the notes say why."
    words = {1: "better", 0: "not told apart", -1: "worse"}
    return f"{points(pair, quantity.digits)}, {words[quantity.better * side(pair)]}."


def _budget(specs: Sequence[str], students: int) -> str:
    """How much was tuned for the closed-form methods."""
    counts = [count for spec in specs if (count := len(alternatives(spec))) > 1]
    where = " at matched weight" if specs[0].startswith("matched:") else ""
    return (
        f"Tuned for the closed-form methods{where}: {len(counts)} constants of {len(specs)} methods, from "
        f"{sum(counts)} values in all ({min(counts)} to {max(counts)} each), on validation data of {students} students "
        "a value. The best of them is the best on test data, which favours it; what training the policies took is not "
        "counted."
    )


def check_study(options: StudyOptions, names: Sequence[str]) -> None:
    """Refuse what cannot be studied before anything is trained.

    Raises:
        BadInputError: Where no policy or no group of methods is given, a policy lists alternatives, or a method of the
            plan cannot be built.
    """
    if not options.rules or not options.only:
        raise BadInputError("a study needs --rules, one policy at least, and --only, one group at least")
    for policy in options.rules:
        if len(alternatives(policy)) > 1:
            raise BadInputError(f"a study needs policies as they are; {policy!r} lists alternatives")
    made = [f"{prefix}:{policy}" for policy in options.rules for prefix in _PREFIXES]
    check_rules(names, options.reported_seeds(), made)
    check_baselines(options.baselines(), names)
