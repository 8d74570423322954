"""The comparison: every rule teaches the same students; one with alternatives is tuned on validation first.

Students of one seed share initial weights, batches and augmentation under every rule, so rules are compared
seed by seed. Small students train side by side as one stack. Test accuracy is measured and chooses nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from rltemp.data.problem import Problem, predict
from rltemp.errors import BadInputError
from rltemp.experiments.alternatives import alternatives, choice, to_choose
from rltemp.experiments.cached_result import MOST_STUDENTS, Cell, in_words
from rltemp.experiments.crews import Crew, share
from rltemp.experiments.measures import MEASURES, Selection, accuracy, measure
from rltemp.experiments.methods_compared import Arm
from rltemp.experiments.parcel import Parcel
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.result_cache import Cells, Job, fill
from rltemp.experiments.showcase import Showing
from rltemp.kd.method import GuardCount, Method, Objective, watch
from rltemp.loading import load_method
from rltemp.models.networks import build_model
from rltemp.policy.rule import Policy
from rltemp.training.distill import Distillation
from rltemp.training.identity import fingerprints, problem_identity, refuse_changed, rule_identity
from rltemp.training.steps import plain_step

if TYPE_CHECKING:
    from rltemp.report.picture import TemperatureTrace

SELECTION_SEED = 500_000
"""Students that choose between a rule's alternatives have seeds from here up; reported ones smaller seeds."""

OnProgress = Callable[[str, int, int], None]
"""Called after each step with the rule in training, the steps taken and all steps of the comparison; after a cell that
was there, or that another process has trained, with "" for the rule."""

Maker = Callable[[Distillation], Objective]
"""Makes the method of a run, for one that no name stands for."""


@dataclass(frozen=True)
class Made:
    """A rule that `load_method` does not know.

    Args:
        maker: Makes its method.
        identity: What determines it, as JSON holds it; names of rules with a file stand as `rule_identity` has them.
    """

    maker: Maker
    identity: Any = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        arms: One for each rule, in the order given.
        names: The rule that was reported, by the rule as written (`fixed:1|2` may be reported as `fixed:2`).
        trace: Temperatures of the first policy among the rules, if there is one.
        files: SHA-256 of the files of the rules that have one, by rule.
        showcases: The files of the students that the page shows, by the rule that was reported.
    """

    arms: list[Arm]
    names: dict[str, str]
    trace: TemperatureTrace | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    showcases: Mapping[str, Path] = field(default_factory=dict)


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
    made: Mapping[str, Made] | None = None,
    cells: Cells | None = None,
    crew: Crew | None = None,
    shown: Sequence[str] = (),
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
        made: The rules that `load_method` does not know, by the name that they have in `rules`.
        cells: Where every stack's result is kept once it is finished, and from where it is taken if it is there.
        crew: Other processes that train the cells instead of this one; needs `cells`.
        shown: The rules, as written, of which one student is watched for the page; kept beside its cell, if at all.

    Raises:
        BadInputError: As `check_rules`, `fill` and `share`; where a policy's file changes meanwhile.
    """
    made = made or {}
    check_rules(rules, seeds, made)
    size = stack or default_stack(problem)
    told = _Counter(problem, rules, len(seeds), selection_seeds, size, on_progress)
    files = fingerprints(spec for spec in rules if spec not in made)
    stacks = _Stacks(problem, size, files, made, told, problem_identity(problem) if cells is not None else {}, crew)
    chooser = range(SELECTION_SEED, SELECTION_SEED + selection_seeds)
    tried = stacks.train([one for spec in rules for one in to_choose(spec)], chooser, cells)
    reported: dict[str, str] = {}
    notes: dict[str, str] = {}
    choices: dict[str, int] = {}
    for spec in rules:
        arms = [gather(one, tried[one], chooser) for one in to_choose(spec)]
        best = max(arms, key=lambda arm: float(arm.validation_accuracy.mean())).rule if arms else spec
        reported[spec] = best
        notes[best] = choice(spec, best) if arms else notes.get(best, "")
        choices[best] = max(len(arms), choices.get(best, 1))
    first = next((one for one in notes if one not in made and _policy(one)), None)
    trained = stacks.train(list(notes), seeds, cells, first, {reported[spec] for spec in shown})
    kept = {reported[spec]: stacks.showcases[reported[spec]] for spec in shown if cells is not None}
    found = [gather(one, trained[one], seeds) for one in notes]
    found = [
        replace(arm, note="; ".join(filter(None, (notes[arm.rule], arm.note))), alternatives=choices[arm.rule])
        for arm in found
    ]
    return Comparison(found, reported, temperatures(trained[first][0]) if first else None, files, kept)


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
    maker: Maker | None = None,
) -> Arm:
    """Train a student for every seed by the rule `spec`, or what `maker` makes, `stack` at a time, and measure them."""
    make = maker or _by_name(spec)
    cells = [train_stack(problem, chunk, make, lambda: told(spec)) for chunk in _chunks(seeds, stack)]
    return gather(spec, cells, seeds)


def train_stack(
    problem: Problem,
    seeds: int | Sequence[int],
    make: Maker,
    told: Callable[[], None] = lambda: None,
    recorder: Recorder | None = None,
) -> Cell:
    """Train one stack of students, or one student, and measure them; `told` is called after each step.

    A student whose numbers stop being finite does not stop the others; it counts as it is.
    """
    run, guards, dataset = Distillation(problem, seeds), GuardCount(), problem.dataset
    method, selection = make(run), Selection(run)
    watched = watch(recorder.watch(method) if recorder else method, guards)
    while not run.done:
        plain_step(run, watched)
        selection.look()
        told()
    logits, test = predict(run.student, dataset, dataset.validation), predict(run.student, dataset, dataset.test)
    found = measure(test, dataset.test.labels, predict(problem.teacher, dataset, dataset.test)) | selection.measure()
    return Cell(
        test_accuracy=_row(accuracy(test, dataset.test.labels)),
        validation_accuracy=_row(accuracy(logits, dataset.validation.labels)),
        measures={name: [None if math.isnan(one) else one for one in _row(row)] for name, row in found.items()},
        diverged=int((~logits.flatten(-2).isfinite().all(-1)).sum()),
        guarded=guards.guarded,
        answered=guards.samples,
        trace=recorder.trace() if recorder else None,
    )


def gather(spec: str, cells: Sequence[Cell], seeds: Sequence[int]) -> Arm:
    """The arm that a rule's stacks make up, their students' seeds being these; diverged students are in its note."""
    diverged, guarded = sum(cell.diverged for cell in cells), sum(cell.guarded for cell in cells)
    fraction = guarded / max(sum(cell.answered for cell in cells), 1)
    notes = [f"{diverged} of {len(seeds)} diverged"] if diverged else []
    if fraction >= 0.0005:
        notes.append(f"guarded {100 * fraction:.1f} % of samples")
    return Arm(
        spec,
        np.concatenate([cell.test_accuracy for cell in cells]),
        np.concatenate([cell.validation_accuracy for cell in cells]),
        "; ".join(notes),
        measures={
            name: np.array([one for cell in cells for one in cell.measures[name]], dtype=np.float64)
            for name in MEASURES  # in this order, wherever the cells come from
            if name in cells[0].measures
        },
        seeds=tuple(seeds),
        diverged=diverged,
        guarded=fraction,
        degraded=any(cell.degraded for cell in cells),
        versions=tuple(sorted({in_words(cell.versions) for cell in cells})),
    )


@dataclass(frozen=True)
class _Stacks:
    """Trains rules, stack by stack, or takes the stacks' cells from where they are kept."""

    problem: Problem
    size: int
    files: Mapping[str, str]
    made: Mapping[str, Made]
    told: _Counter | None
    identity: Mapping[str, Any]
    crew: Crew | None = None
    showcases: dict[str, Path] = field(default_factory=dict)
    _makers: dict[str, Maker] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to `work`."""
        return {**vars(self), "problem": Parcel(self.problem), "told": None, "crew": None, "_makers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "problem": state["problem"].opened()})

    def train(
        self,
        rules: Sequence[str],
        seeds: Sequence[int],
        cells: Cells | None,
        traced: str | None = None,
        watched: Container[str] = (),
    ) -> dict[str, list[Cell]]:
        """Each rule's cells, in the order of the seeds; the first of the rule `traced` has its temperatures."""
        beside = {rule: cells.path if cells and rule in watched else None for rule in dict.fromkeys(rules)}
        jobs = {rule: self.jobs(rule, seeds, rule == traced, place) for rule, place in beside.items()}
        wanted = [job for of_rule in jobs.values() for job in of_rule]
        if self.crew is None or cells is None:
            found = iter(fill(cells, wanted))
        else:
            found = iter(share(self.crew, cells, wanted, self.work))
        return {rule: [next(found) for _ in of_rule] for rule, of_rule in jobs.items()}

    def jobs(
        self, rule: str, seeds: Sequence[int], traced: bool, beside: Callable[[Mapping[str, Any]], Path] | None = None
    ) -> list[Job]:
        """What is to be had of a rule; its method is made when the first of its stacks is trained.

        The first stack's showcase goes beside its cell, where `beside` tells that cell's file.
        """
        made = self.made.get(rule)
        identity = made.identity if made else rule_identity(rule, self.files)
        skipped = functools.partial(self.told.skip, self.steps) if self.told else lambda: None

        def job(chunk: int | list[int], traced: bool) -> Job:
            key = {**self.identity, "rule": identity, "seeds": chunk, "traced": traced}
            showcase = beside(key).with_suffix(".showcase") if beside and chunk == chunks[0] else None
            if showcase:
                self.showcases[rule] = showcase
            order = rule, chunk, traced, showcase
            return Job(key, lambda: self.work(*order), skipped, order)

        chunks = _chunks(seeds, self.size)
        return [job(chunk, traced and place == 0) for place, chunk in enumerate(chunks)]

    def work(self, rule: str, chunk: int | list[int], traced: bool, showcase: Path | None) -> Cell:
        """Train one stack, and leave its showcase where one is wanted."""
        policy = _policy(rule) if traced else None
        recorder = Recorder(policy, self.steps) if policy else None
        if rule not in self._makers:
            self._makers[rule] = self.made[rule].maker if rule in self.made else _by_name(rule)
        showing = Showing(showcase) if showcase else None
        maker = showing.begin(self._makers[rule]) if showing else self._makers[rule]
        told = functools.partial(self.told, rule) if self.told else lambda: None
        cell = train_stack(self.problem, chunk, maker, told, recorder)
        if showing:
            showing.end()
        refuse_changed(self.files, "what was trained before")
        return cell

    @property
    def steps(self) -> int:
        """Of each run."""
        return self.problem.task.recipe.steps(len(self.problem.dataset.train))


def temperatures(cell: Cell) -> TemperatureTrace | None:
    """The cell's trace, where it has one, for the picture."""
    from rltemp.report.picture import TemperatureTrace  # matplotlib takes half a second, which no worker need wait for

    if cell.trace is None:
        return None
    progress, margin, student, teacher = cell.trace.rows()
    return TemperatureTrace(progress, margin, student, teacher, cell.trace.reference)


def _chunks(seeds: Sequence[int], stack: int) -> list[int | list[int]]:
    """The seeds of each stack; where one student makes a stack, it is trained by itself."""
    if stack > MOST_STUDENTS:
        raise BadInputError(f"a stack holds at most {MOST_STUDENTS} students; got --stack {stack}")
    if stack == 1:
        return list(seeds)
    return [list(seeds[start : start + stack]) for start in range(0, len(seeds), stack)]


def _by_name(spec: str) -> Maker:
    method = load_method(spec)
    return lambda run: run.attach(method)


def _policy(spec: str) -> Policy | None:
    method = load_method(spec)
    return method.rule if isinstance(method, Method) and isinstance(method.rule, Policy) else None


class _Counter:
    """Counts the steps of all stacks, those that were taken before among them, and passes the count on."""

    def __init__(
        self, problem: Problem, rules: Sequence[str], seeds: int, choosers: int, stack: int, report: OnProgress | None
    ) -> None:
        stacks = sum(-(-seeds // stack) + len(to_choose(spec)) * -(-choosers // stack) for spec in rules)
        self._steps = stacks * problem.task.recipe.steps(len(problem.dataset.train))
        self._taken = 0
        self._report = report

    def skip(self, steps: int) -> None:
        """Count the steps of a stack that was not trained here."""
        self("", steps)

    def __call__(self, spec: str, steps: int = 1) -> None:
        self._taken += steps
        if self._report is not None:
            self._report(spec, self._taken, self._steps)


def _row(accuracy: Tensor) -> list[float]:
    row: list[float] = accuracy.double().reshape(-1).tolist()
    return row
