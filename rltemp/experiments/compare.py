"""The comparison: every method teaches the same students; one with alternatives is tuned on validation data first.

Students of one seed share initial weights, batches and augmentation under every method, so methods are compared
seed by seed. Small students train side by side as one stack. Test accuracy is measured and chooses nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rltemp.compiling.mode import CompileMode, is_compiled
from rltemp.data.problem import Problem
from rltemp.experiments.grid import alternatives, check_rules, choice, to_choose
from rltemp.experiments.measures import ACCURACY, Quantity, quantity_of
from rltemp.experiments.method_results import Comparison
from rltemp.experiments.options import SELECTION_SEED
from rltemp.experiments.recorder import Recorder, temperature_columns, temperature_trace
from rltemp.experiments.result_cache import MOST_POINTS, CachedResult, ResultCache, StoredTrace, TrainedStack
from rltemp.experiments.showcase import CONTENT, ShowcaseRecorder
from rltemp.experiments.students import (
    Maker,
    by_name,
    chunks,
    gather,
    step_of,
    steps_of_a_run,
    train_stack,
)
from rltemp.io.pool import Order, WorkerPool
from rltemp.loading import load_method
from rltemp.policy.rule import Policy
from rltemp.training.identity import fingerprints, problem_identity, refuse_changed, rule_identity
from rltemp.training.steps import Step, plain_step

OnProgress = Callable[[str, int, int], None]
"""Called after each step with the rule in training, the steps taken and all steps of the comparison; after a result
that was cached, or that another process has trained, with "" for the rule."""


@dataclass(frozen=True)
class Made:
    """A rule that `load_method` does not know.

    Args:
        maker: Makes its method.
        identity: What determines it, as JSON holds it; names of rules with a file stand as `rule_identity` has them.
    """

    maker: Maker
    identity: Any = None


def compare(
    problem: Problem,
    rules: Sequence[str],
    seeds: Sequence[int],
    *,
    selection_seeds: int = 32,
    stack: int | None = None,
    compile_mode: CompileMode = "auto",
    on_progress: OnProgress | None = None,
    made: Mapping[str, Made] | None = None,
    cache: ResultCache | None = None,
    pool: WorkerPool | None = None,
    shown: Collection[str] = (),
) -> Comparison:
    """Train one student for every rule and seed.

    Args:
        problem: The task, loaded.
        rules: As `load_method` reads them; options may list alternatives (`dtkd:reference=1|2|4|8`), of which
            the one that is best on validation data, on students of its own, is reported: by mean accuracy, or by mean
            loss where samples are tokens.
        seeds: Of the students that are reported, 0 or more.
        selection_seeds: How many students choose between alternatives.
        stack: How many students train side by side; by default what suits the student's size.
        compile_mode: Whether steps are compiled; see `rltemp.compiling.mode`.
        on_progress: Told of every step.
        made: The rules that `load_method` does not know, by the name that they have in `rules`.
        cache: Where every stack's result is kept once it is there, and from where it is taken if it is there.
        pool: Other processes that train instead of this one.
        shown: The rules, as written, of which one student is recorded for the page; kept beside its result, if at all.

    Raises:
        BadInputError: As `check_rules` and `results_of`; where a policy's file changes meanwhile.
    """
    made = made or {}
    check_rules(rules, seeds, made)
    size = stack or problem.stack_size
    total, taken = 0, 0

    def told(spec: str, steps: int = 1) -> None:
        nonlocal taken
        taken += steps
        if on_progress is not None:
            on_progress(spec, taken, total)

    files = fingerprints(spec for spec in rules if spec not in made)
    identity = problem_identity(problem) if cache is not None else {}
    step = step_of(problem, compile_mode, size, len(seeds))
    modes: list[dict[str, Any]] = [{"compiled": True}, {}] if is_compiled(step) else [{}, {"compiled": True}]
    identities = [{**identity, **mode} for mode in modes[: 2 if compile_mode == "auto" else 1]]
    trainer = _Trainer(problem, size, files, made, identities, told, cache, pool, step)
    quantity, chooser = quantity_of(problem), range(SELECTION_SEED, SELECTION_SEED + selection_seeds)
    stacks = [trainer.stacks(one, chooser) for spec in rules for one in to_choose(spec)]
    stacks += [trainer.stacks(alternatives(spec)[0], seeds) for spec in rules]
    total = sum(map(len, stacks)) * steps_of_a_run(problem)
    tuned = _tune(trainer, rules, chooser, quantity)
    reported = {spec: best for spec, (best, _) in tuned.items()}
    names = list(dict.fromkeys(reported.values()))
    first = next((one for one in names if one not in made and _policy(one)), None)
    showing = {reported[spec] for spec in shown} if cache is not None else set()
    trained = trainer.train(names, seeds, first, showing)
    by = "validation" if quantity is ACCURACY else f"validation {quantity.name}"
    notes = {best: choice(spec, best, by) for spec, (best, count) in tuned.items() if count > 1}
    counts = {name: max(count for best, count in tuned.values() if best == name) for name in names}
    trace = trained[first][0].trace if first else None
    found = [gather(name, trained[name], seeds) for name in names]
    return Comparison(
        [
            replace(one, note="; ".join(filter(None, (notes.get(one.rule), one.note))), alternatives=counts[one.rule])
            for one in found
        ],
        reported,
        trace.unpack() if trace else None,
        files,
        {rule: trainer.showcases[rule] for rule in dict.fromkeys(reported[spec] for spec in shown) if rule in showing},
        quantity,
        is_compiled(step),
    )


def _tune(
    trainer: _Trainer, rules: Sequence[str], chooser: Sequence[int], quantity: Quantity
) -> dict[str, tuple[str, int]]:
    """The alternative of each rule that is best on validation data, and from how many it was chosen (1: none)."""
    tried = trainer.train([one for spec in rules for one in to_choose(spec)], chooser)
    found = {}
    for spec in rules:
        results = [gather(one, tried[one], chooser) for one in to_choose(spec)]
        best = max(results, key=lambda one: one.chosen_by(quantity)).rule if results else spec
        found[spec] = best, max(len(results), 1)
    return found


@dataclass(frozen=True)
class _Trainer:
    """Trains rules, stack by stack, or takes the results of stacks from the cache.

    `identities` hold what determines a result beside rule and seeds: of one that is trained here, and of those that
    would do as well. Whoever leaves it open whether steps are compiled has a comparison grow from results of either.
    """

    problem: Problem
    size: int
    files: Mapping[str, str]
    made: Mapping[str, Made]
    identities: Sequence[Mapping[str, Any]]
    told: Callable[..., None] = lambda *_: None
    cache: ResultCache | None = None
    pool: WorkerPool | None = None
    step: Step = plain_step
    showcases: dict[str, Path] = field(default_factory=dict)
    _makers: dict[str, Maker] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to `work`."""
        here = {"told": None, "cache": None, "pool": None}
        return {**vars(self), **here, "_makers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "told": lambda *_: None})

    def train(
        self, rules: Sequence[str], seeds: Sequence[int], traced: str | None = None, shown: Container[str] = ()
    ) -> dict[str, list[CachedResult]]:
        """The results of each rule, in the order of the seeds; the first of the rule `traced` has its temperatures."""
        jobs = {rule: self._jobs(rule, seeds, rule == traced, rule in shown) for rule in dict.fromkeys(rules)}
        wanted = [job for of_rule in jobs.values() for job in of_rule]
        found = iter(results_of(wanted, self.work, self.cache, self.pool))
        return {rule: [next(found) for _ in of_rule] for rule, of_rule in jobs.items()}

    def _jobs(self, rule: str, seeds: Sequence[int], traced: bool, shown: bool) -> list[Job]:
        """A job a stack; the first stack is the one that is traced and shown."""
        jobs: list[Job] = []
        skipped = functools.partial(self.told, "", steps_of_a_run(self.problem))
        for place, chunk in enumerate(self.stacks(rule, seeds)):
            first = place == 0
            key = self._key(rule, chunk, traced and first)
            jobs.append(Job(key, (rule, chunk, traced and first, shown and first), skipped))
            if shown and first and self.cache is not None:
                self.showcases[rule] = self.cache.path(key).with_suffix(CONTENT)
        return jobs

    def stacks(self, rule: str, seeds: Sequence[int]) -> list[int | list[int]]:
        """The seeds of each stack: as cached results have them, so that a comparison may grow, and else full stacks."""
        full, found, cache = chunks(seeds, self.size), list[int | list[int]](), self.cache
        if cache is None or self.size == 1:
            return full
        while seeds:
            counts = range(min(self.size, len(seeds)), 0, -1)
            keys = (self._key(rule, [*seeds[:count]], False) for count in counts)
            count = next((len(key["seeds"]) for key in keys if cache.has(key)), counts[0])
            found.append([*seeds[:count]])
            seeds = seeds[count:]
        return found

    def _key(self, rule: str, chunk: int | list[int], traced: bool) -> dict[str, Any]:
        """What determines a stack's result. One that was traced beside it is as good as one that was not."""
        of_rule = self.made[rule].identity if rule in self.made else rule_identity(rule, self.files)
        own, *as_good = [
            {**identity, "rule": of_rule, "seeds": chunk, "traced": either}
            for identity in self.identities
            for either in dict.fromkeys((traced, True))
        ]
        return next((key for key in (own, *as_good) if self.cache and self.cache.has(key)), own)

    def work(self, rule: str, chunk: int | list[int], traced: bool, shown: bool) -> TrainedStack:
        """Train one stack; its method is made when the first stack of a rule is trained."""
        if rule not in self._makers:
            self._makers[rule] = self.made[rule].maker if rule in self.made else by_name(rule)
        steps, students = steps_of_a_run(self.problem), 1 if isinstance(chunk, int) else len(chunk)
        policy = _policy(rule) if traced else None
        tracer = [Recorder(temperature_columns(policy), steps, MOST_POINTS // students)] if policy else []
        showing = [ShowcaseRecorder(steps)] if shown else []
        told = functools.partial(self.told, rule)
        result = train_stack(self.problem, chunk, self._makers[rule], told, [*tracer, *showing], self.step)
        refuse_changed(self.files, "what was trained before")
        if tracer and (trace := temperature_trace(tracer[0])):
            result = result.model_copy(update={"trace": StoredTrace.pack(trace)})
        return TrainedStack(result, showing[0].files if showing else {})


@dataclass(frozen=True)
class Job:
    """One result to be had.

    Args:
        key: What determines it, as JSON holds it; under `seeds` the student's seed, or a list of seeds for a stack.
        order: The arguments of the work that trains it.
        skipped: Told where this process has not trained it.
    """

    key: Mapping[str, Any]
    order: Order
    skipped: Callable[[], None] = lambda: None


def results_of(
    jobs: Sequence[Job],
    work: Callable[..., TrainedStack],
    cache: ResultCache | None = None,
    pool: WorkerPool | None = None,
) -> list[CachedResult]:
    """Every job's result, in their order; those that are not cached are trained.

    Args:
        jobs: What is wanted.
        work: Trains one, given its order.
        cache: Where results are kept as soon as they are there; None keeps them nowhere.
        pool: Other processes that train instead of this one.

    Raises:
        BadInputError: As the work raises it, or where a result cannot be written.
        TrainingStoppedError: As `WorkerPool.run`.
    """
    found = {place: one for place, job in enumerate(jobs) if cache and (one := cache.read(job.key)) is not None}
    for place in found:
        jobs[place].skipped()
    missing = [place for place in range(len(jobs)) if place not in found]
    if cache:
        cache.found += len(found)
    orders = [jobs[place].order for place in missing]
    for number, outcome in pool.run(work, orders) if pool else ((i, work(*one)) for i, one in enumerate(orders)):
        job = jobs[missing[number]]
        if cache:
            cache.write(job.key, outcome)
            cache.trained += 1
        if pool:
            job.skipped()
        found[missing[number]] = outcome.result
    return [found[place] for place in range(len(jobs))]


def _policy(spec: str) -> Policy | None:
    rule = getattr(load_method(spec), "rule", None)
    return rule if isinstance(rule, Policy) else None
