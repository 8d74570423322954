"""The comparison: every rule teaches the same students; one with alternatives is tuned on validation first.

Students of one seed share initial weights, batches and augmentation under every rule, so rules are compared
seed by seed. Small students train side by side as one stack. Test accuracy is measured and chooses nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rltemp.arms import Arm
from rltemp.controls import WRAPPERS
from rltemp.distill import Distillation, Problem, evaluate, predict
from rltemp.errors import BadInputError
from rltemp.loading import load_method
from rltemp.methods import GuardCount, Method, watch
from rltemp.models import build_model
from rltemp.names import split_spec
from rltemp.picture import TemperatureTrace
from rltemp.policy import Policy
from rltemp.recipes import METHODS
from rltemp.recorder import Recorder
from rltemp.types import Signals

SELECTION_SEED = 500_000
"""Students that choose between a rule's alternatives have seeds from here up; reported ones smaller seeds."""

OnProgress = Callable[[str, int, int], None]
"""Called after each step with the rule in training, the steps taken and all steps of the comparison."""

Maker = Callable[[Distillation], Method]
"""Makes the method of a run, for one that no name stands for."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        arms: One for each rule, in the order given.
        names: The rule that was reported, by the rule as written (`fixed:1|2` may be reported as `fixed:2`).
        trace: Temperatures of the first policy among the rules, if there is one.
    """

    arms: list[Arm]
    names: dict[str, str]
    trace: TemperatureTrace | None = None


def alternatives(spec: str) -> list[str]:
    """Every concrete rule that `spec` stands for: options may list values with `|`.

    >>> alternatives("dtkd:reference=2|4,warmup=0")
    ['dtkd:reference=2,warmup=0', 'dtkd:reference=4,warmup=0']
    >>> alternatives("fixed:1|2")
    ['fixed:1', 'fixed:2']
    >>> alternatives("matched:shuffled:fixed:1|2")
    ['matched:shuffled:fixed:1', 'matched:shuffled:fixed:2']
    """
    name, options = split_spec(spec)
    if name in WRAPPERS:
        return [f"{name}:{inner}" for inner in alternatives(options)]
    if name not in METHODS or "|" not in options:
        return [spec]
    listed = [[key + value for value in values] for key, values in _listed(options)]
    return [f"{name}:{','.join(chosen)}" for chosen in itertools.product(*listed)]


def check_rules(rules: Sequence[str], seeds: Sequence[int], made: Container[str] = ()) -> None:
    """Build every rule that is not `made` and check the seeds: a mistake in the last costs none of the others' time.

    Raises:
        BadInputError: For a rule that cannot be built or is there twice, or for seeds out of range.
        ArtifactRefusedError: For a policy file that fails its checks.
    """
    if not rules or not seeds:
        raise BadInputError("a comparison needs at least one rule and one seed")
    for spec in rules:
        if list(rules).count(spec) > 1:
            raise BadInputError(f"rule {spec!r} is given twice")
        for concrete in alternatives(spec) if spec not in made else ():
            load_method(concrete)
    if min(seeds) < 0 or max(seeds) >= SELECTION_SEED:
        raise BadInputError(
            f"seeds must be between 0 and {SELECTION_SEED - 1}; got {min(seeds)} to {max(seeds)}. "
            "Larger ones are kept for choosing between alternatives and for training policies"
        )


def compare(
    problem: Problem,
    rules: Sequence[str],
    seeds: Sequence[int],
    *,
    selection_seeds: int = 32,
    stack: int | None = None,
    on_progress: OnProgress | None = None,
    made: Mapping[str, Maker] | None = None,
) -> Comparison:
    """Train one student for every rule and seed.

    Args:
        problem: The task, loaded.
        rules: As `load_method` reads them; options may list alternatives (`dtkd:reference=1|2|4|8`), of which
            the one with the best mean validation accuracy on students of its own is reported.
        seeds: Of the students that are reported, 0 or more.
        selection_seeds: How many students choose between alternatives.
        stack: How many students train side by side; by default what suits the student's size.
        on_progress: Told of every step.
        made: Makers of the rules that `load_method` does not know, by the name that they have in `rules`.

    Raises:
        BadInputError: As `check_rules`.
    """
    made = made or {}
    check_rules(rules, seeds, made)
    size = stack or default_stack(problem)
    chooser = list(range(SELECTION_SEED, SELECTION_SEED + selection_seeds))
    told = _counter(problem, rules, len(seeds), len(chooser), size, on_progress)
    reported: dict[str, str] = {}
    notes: dict[str, str] = {}
    for spec in rules:
        arms = [train_arm(problem, concrete, chooser, size, told) for concrete in _to_choose(spec)]
        best = max(arms, key=lambda arm: float(arm.validation_accuracy.mean())).rule if arms else spec
        reported[spec] = best
        notes[best] = _choice(spec, best) if arms else notes.get(best, "")
    trace: TemperatureTrace | None = None
    steps = problem.task.recipe.steps(len(problem.dataset.train))
    found: list[Arm] = []
    for concrete in notes:
        recorder = _recorder(concrete, steps) if trace is None and concrete not in made else None
        arm = train_arm(problem, concrete, seeds, size, told, recorder, made.get(concrete))
        found.append(replace(arm, note="; ".join(filter(None, (notes[concrete], arm.note)))))
        trace = recorder.trace() if recorder else trace
    return Comparison(found, reported, trace)


def default_stack(problem: Problem) -> int:
    """64 for small perceptrons; 1 for networks that fill the machine (a stacked convolution is slow)."""
    student = build_model(problem.task.student, problem.dataset.image_shape, problem.dataset.num_classes)
    convolves = any(isinstance(module, nn.Conv2d) for module in student.modules())
    return 1 if convolves or sum(value.numel() for value in student.parameters()) >= 100_000 else 64


def train_arm(
    problem: Problem,
    spec: str,
    seeds: Sequence[int],
    stack: int,
    told: Callable[[str], None] = lambda _: None,
    recorder: Recorder | None = None,
    maker: Maker | None = None,
) -> Arm:
    """Train a student for every seed by the rule `spec`, or what `maker` makes, `stack` at a time, and measure them.

    A student whose numbers stop being finite does not stop the others; it counts as it is, with a note.
    """
    make, guards = maker or _by_name(spec), GuardCount()
    test, validation, diverged = [], [], 0
    for start in range(0, len(seeds), stack):
        chunk = list(seeds[start : start + stack])
        run = Distillation(problem, chunk[0] if stack == 1 else chunk)
        method = make(run)
        watched = watch(recorder.watch(method) if recorder and start == 0 else method, guards)
        while not run.done:
            run.update(watched.loss(shielded(run.observe())))
            told(spec)
        dataset = problem.dataset
        test.append(_row(evaluate(run.student, dataset, dataset.test)))
        logits = predict(run.student, dataset, dataset.validation)
        validation.append(_row((logits.argmax(-1) == dataset.validation.labels).float().mean(-1)))
        diverged += int((~logits.flatten(-2).isfinite().all(-1)).sum())
    notes = [f"{diverged} of {len(seeds)} diverged"] if diverged else []
    if guards.fraction >= 0.0005:
        notes.append(f"guarded {100 * guards.fraction:.1f} % of samples")
    return Arm(spec, np.concatenate(test), np.concatenate(validation), "; ".join(notes))


def _by_name(spec: str) -> Maker:
    method = load_method(spec)
    return lambda run: run.attach(method)


def _recorder(spec: str, steps: int) -> Recorder | None:
    rule = load_method(spec).rule
    return Recorder(rule, steps) if isinstance(rule, Policy) else None


def _listed(options: str) -> Iterator[tuple[str, list[str]]]:
    """Each option as what stands before its values (`reference=`, or nothing) and its values."""
    for item in options.split(","):
        key, equals, values = item.rpartition("=")
        yield key + equals, values.split("|")


def _to_choose(spec: str) -> list[str]:
    found = alternatives(spec)
    return found if len(found) > 1 else []


def _choice(spec: str, best: str) -> str:
    """What was chosen from what: `reference=2 chosen on validation from 1|2|4|8`."""
    (name, options), (_, found) = split_spec(spec), split_spec(best)
    if name in WRAPPERS:
        return _choice(options, found)
    written, chosen = _listed(options), found.split(",")
    parts = [
        f"{value} chosen on validation from {'|'.join(values)}"
        for value, (_, values) in zip(chosen, written, strict=True)
        if len(values) > 1
    ]
    return ", ".join(parts)


def _counter(
    problem: Problem, rules: Sequence[str], seeds: int, choosers: int, stack: int, report: OnProgress | None
) -> Callable[[str], None]:
    """A function that counts the steps of all stacks and passes the count on."""
    stacks = sum(-(-seeds // stack) + len(_to_choose(spec)) * -(-choosers // stack) for spec in rules)
    steps = stacks * problem.task.recipe.steps(len(problem.dataset.train))
    taken = itertools.count(1)

    def told(spec: str) -> None:
        step = next(taken)
        if report is not None:
            report(spec, step, steps)

    return told


def shielded(signals: Signals) -> Signals:
    """The signals, with the logits of samples that are not finite as zeros, which every rule can take.

    A student's numbers reach nobody else's weights, but one nan among the temperatures would stop the stack.
    """
    good = signals.student_logits.isfinite().all(-1, keepdim=True)
    if bool(good.all()):
        return signals
    return replace(signals, student_logits=torch.where(good, signals.student_logits, 0.0))


def _row(accuracy: Tensor) -> NDArray[np.float64]:
    row: NDArray[np.float64] = np.atleast_1d(accuracy.double().cpu().numpy())
    return row
