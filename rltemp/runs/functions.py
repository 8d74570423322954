"""The entrance from Python: `rltemp.train_policy`, `distill`, `check`, `compare`, `study` and `explain`.

Each does what the command of its name does, with the same options by the same names (`batch_size` for --batch-size) and
the same files, and prints nothing. Progress is logged by `logging`, under `rltemp`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.check import run_check
from rltemp.experiments.compare import OnProgress
from rltemp.experiments.options import CheckOptions, CompareOptions, ExplainOptions, StudyOptions
from rltemp.experiments.result_cache import ResultCache
from rltemp.io.command_words import with_home
from rltemp.io.locks import released_at_end
from rltemp.io.pool import check_ray
from rltemp.io.run_folders import nothing_left_by_a_failed_start
from rltemp.kd.names import lookup
from rltemp.report.comparison import run_comparison, run_study
from rltemp.report.explain_page import run_explanation
from rltemp.runs.distill import DistillOptions
from rltemp.runs.train_policy import TrainPolicyOptions
from rltemp.training.options import flat

Options = TypeVar("Options")
Folder = str | Path | None
Rule = str | Path
"""As `rltemp.load_method` reads it."""


def train_policy(task: Task | str = "digits", out: Folder = None, **options: Any) -> dict[str, Any]:
    """Learn a temperature policy for a task by reinforcement learning: `policy.safetensors` in the run's folder.

        result = rltemp.train_policy("digits", out="runs/p", updates=100, workers=2)
        controller = rltemp.Controller("runs/p/policy.safetensors")

    Args:
        task: Of `Task.of`, or a name.
        out: The run's folder; by default runs/train-policy-TASK. An unfinished run in it goes on.
        **options: Of `rltemp train-policy`, as in `updates=20, students_per_update=16, workers=2`.

    Returns:
        The result, as in the folder's `result.json`.

    Raises:
        BadInputError: Where an option or the task cannot be used; nothing is trained or written then.
    """
    return _run(made(TrainPolicyOptions, task=task, out=out, **options))


def distill(
    task: Task | str = "digits", rule: Rule = "universal", out: Folder = None, **options: Any
) -> dict[str, Any]:
    """Train one student under a rule or a policy file: `student.safetensors` in the run's folder.

        result = rltemp.distill("digits", "dtkd", seed=3)
        print(result["test_accuracy"])

    Args:
        task: Of `Task.of`, or a name.
        rule: As `rltemp.load_method` reads it.
        out: The run's folder; by default runs/distill-TASK-RULE-SEED.
        **options: Of `rltemp distill`, as in `seed=3`.

    Returns:
        The result, accuracies among it.

    Raises:
        BadInputError: Where an option or the task cannot be used.
    """
    return _run(made(DistillOptions, task=task, rule=rule, out=out, **options))


def check(task: Task | str, rule: Rule = "universal", out: Folder = None, **options: Any) -> dict[str, Any]:
    """Tell in about a minute whether a policy is worth using on a task, by students measured on validation data.

        result = rltemp.check("wine")
        print(result["verdict"])  # use it, use another rule, or do not distil

    Args:
        task: Of `Task.of`, or a name.
        rule: The policy, or another rule, as `rltemp.load_method` reads it.
        out: The run's folder; by default runs/check-TASK-RULE.
        **options: Of `rltemp check`, as in `seeds=64, learning_rate=0.1`.

    Returns:
        The result: `verdict`, a line, and `use`, the rule to use (`none`: do not distil; None: too few students to
        tell), with the table behind it under `arms`.

    Raises:
        BadInputError: Where an option, the rule or the task cannot be used.
    """
    return found(made(CheckOptions, task=task, rule=rule, out=out, **options), run_check, _silent)


def compare(task: Task | str, rules: Rule | Sequence[Rule], out: Folder = None, **options: Any) -> dict[str, Any]:
    """Train students under several rules, paired by seed, and report the differences.

        result = rltemp.compare("digits", ["fixed:4", "dtkd", "universal"], out="runs/c", seeds=32)
        print(result["verdict"][0])  # and open runs/c/report.html

    Args:
        task: Of `Task.of`, or a name.
        rules: One or several, as `rltemp.load_method` reads them; of `fixed:1|2|4` the best on validation data is
            reported.
        out: The run's folder; by default runs/compare-TASK.
        **options: Of `rltemp compare`, as in `seeds=64`.

    Returns:
        The result, as in the folder's `result.json`.

    Raises:
        BadInputError: Where an option, a rule or the task cannot be used.
    """
    return found(made(CompareOptions, task=task, rules=_several(rules), out=out, **options), run_comparison, _silent)


def study(task: Task | str, policies: Rule | Sequence[Rule], out: Folder = None, **options: Any) -> dict[str, Any]:
    """Compare policies with every method, tuned, and with controls.

        result = rltemp.study("digits", "runs/p/policy.safetensors", seeds=128)
        print(*result["verdict"], sep=" ")

    Arguments, result and errors as of `compare`.
    """
    return found(made(StudyOptions, task=task, rules=_several(policies), out=out, **options), run_study, _silent)


def explain(task: Task | str, policy: Rule, out: Folder = None, **options: Any) -> dict[str, Any]:
    """Show why a policy sets the temperatures it sets: `why.md` and `why.png` in the run's folder.

        result = rltemp.explain("digits", "universal", seeds=16)
        result["relations"]  # of a sample's difficulty with its temperatures

    Arguments, result and errors as of `compare`.
    """
    return found(made(ExplainOptions, task=task, rules=(policy,), out=out, **options), run_explanation, _silent)


def made(kind: type[Options], **values: Any) -> Options:
    """Options of a command from the names that they have on its command line, those of dataclasses inside among them.

    Raises:
        BadInputError: For a name that nobody knows, with the closest match.
    """
    default = kind()
    for name in values:
        lookup(flat(default), name, "option")
    values = {name: _plain(with_home(value)) for name, value in values.items()}
    values = getattr(kind, "implied", dict)(values) | values  # a preset's options come behind those that are given
    values["task"] = _with_own_parts(values)
    given: dict[str, Any] = {}
    for field in fields(default):  # type: ignore[arg-type]  # every kind is a dataclass
        inner = getattr(default, field.name)
        if is_dataclass(inner) and not isinstance(inner, type):
            known = {one.name for one in fields(inner)}
            own = {name: values[name] for name in known & values.keys() if not hasattr(kind, name)}
            prefixed = {name: values[f"{field.name}_{name}"] for name in known if f"{field.name}_{name}" in values}
            given[field.name] = type(inner)(**_typed(type(inner), {**own, **prefixed}))
        elif field.name in values:
            given |= _typed(kind, {field.name: values[field.name]})
    return kind(**given)


def _several(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """One rule, or several."""
    return (rules,) if isinstance(rules, (str, Path)) else tuple(rules)


def _plain(value: Any) -> Any:
    """A path as its name, also inside a row of values; a field that is a path makes one of it again."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def _with_own_parts(values: dict[str, Any]) -> Task | str:
    """The task; networks and optimizers among the options that are no names, which no option can hold, go into it.

    Raises:
        BadInputError: Where it is no task, or a part cannot be one.
    """
    task = values["task"]
    if not isinstance(task, (Task, str)):
        raise BadInputError(f"task must be a name or of rltemp.Task.of; got {task!r:.80}")
    parts = ("student", "teacher", "optimizer", "teacher_optimizer")
    given = {name: values.pop(name) for name in parts if not isinstance(values.get(name), (str, NoneType))}
    return load_task(task, **given) if given else task


def _typed(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values of options as their fields have them.

    Raises:
        BadInputError: For one that is of another type.
    """
    hints, typed = get_type_hints(kind), dict(values)
    for name in values.keys() - {"task"}:
        try:
            typed[name] = TypeAdapter(hints[name]).validate_python(values[name])
        except ValidationError as error:
            named = ". Give a rule by its name; one of your own as FILE.py:NAME" if name in ("rule", "rules") else ""
            told = f"option {name} cannot be {values[name]!r:.80}: {error.errors()[0]['msg']}{named}"
            raise BadInputError(told) from error
    return typed


def _run(options: DistillOptions | TrainPolicyOptions) -> dict[str, Any]:
    with released_at_end(), nothing_left_by_a_failed_start(options.folder()):
        return options.run() or {}


def found(options: Any, work: Any, progress: Any) -> dict[str, Any]:
    """The result of a command that trains many students: the stored one where it is finished, or what the work makes.

    Args:
        options: Of the command.
        work: Makes a result of the options and of what shows progress.
        progress: Shows, within a context, how far it is.
    """
    options.check()
    with released_at_end(), nothing_left_by_a_failed_start(options.folder()):
        result: dict[str, Any] | None = options.look()[1]
        if result is None:
            if getattr(options, "ray", None) is not None:
                check_ray(options.ray)
            result = work(options, progress)
        return result


@contextlib.contextmanager
def _silent(*_: Problem | ResultCache) -> Iterator[OnProgress]:
    yield lambda *_: None
