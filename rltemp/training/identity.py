"""What a result depends on: data, teacher and rule by their content, the machine, and the global generators."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import random
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset
from rltemp.data.problem import Problem
from rltemp.data.task import Own, Task
from rltemp.errors import BadInputError
from rltemp.io.versions import versions
from rltemp.kd.names import split_spec
from rltemp.loading import is_policy, named_policy
from rltemp.rules.controls import WRAPPERS
from rltemp.rules.published_methods import METHODS

MAX_FILE_BYTES = 1 << 24


def fingerprints(rules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the policy file, or of the module's source, behind each rule that has one, by its name there.

    Names alone would not notice a policy that is trained again into the same file.
    """
    files = {leaf: file for leaf in map(_leaf, rules) if (file := _file(leaf)) is not None}
    return {leaf: _sha256(file) for leaf, file in files.items()}


def refuse_other_files(result: Mapping[str, Any], rules: Iterable[str], folder: Path) -> None:
    """Refuse a finished comparison of these rules where a file of theirs is another by now; see `refuse_changed`.

    A result may come from a stranger: it says what a file was, and the rules that were asked for say which.
    """
    files = result.get("files")
    stored = files if isinstance(files, dict) else {}
    known = {leaf: str(stored[leaf]) for leaf in map(_leaf, rules) if leaf in stored}
    refuse_changed(known, f"the finished comparison in {folder}")


def refuse_changed(known: Mapping[str, str], what: str) -> None:
    """Refuse rules whose files are others than those of the fingerprints; a file that is gone is no other.

    Raises:
        BadInputError: With the file, both digests and `what` was made of the first.
    """
    present = [leaf for leaf in known if (file := _file(leaf)) is not None and file.is_file()]
    for leaf, now in fingerprints(present).items():
        if now != known[leaf]:
            raise BadInputError(
                f"{leaf} was changed: {what} is of another file (SHA-256 {known[leaf][:12]}... then, "
                f"{now[:12]}... now). Choose another --out, or put that file back"
            )


def rule_identity(rule: str, files: Mapping[str, str]) -> list[str]:
    """What a rule is: its name, where the tables of this version determine it; else what its file holds.

    A policy counts by its content wherever it lies, a module's attribute by its name and the module's source.
    """
    leaf = _leaf(rule)
    if leaf not in files:
        return [rule]
    return [rule.removesuffix(leaf) if _is_policy(leaf) else rule, files[leaf]]


def problem_identity(problem: Problem) -> dict[str, Any]:
    """What a problem gives a student: data, teacher and recipe, by their content, and where it computes."""
    task, state = problem.task, {} if problem.teacher is None else problem.teacher.state_dict()
    logits = {} if problem.teacher_logits is None else {"logits": problem.teacher_logits}
    student = task.student if task.own.student is None else network_identity(task.own.student)
    return {
        "task": {"student": student, "teacher": task.teacher, "recipe": task.recipe.described()},
        "data": _data_digest(problem.dataset),
        "teacher": _digest(state or logits),
        "device": problem.device.type,
    }


def task_content(task: Task) -> str:
    """SHA-256 of the parts of a task that are a user's own, and of all that it says; empty where all have names."""
    own = task.own
    if own == Own():
        return ""
    found: list[Any] = [task.described()]
    if own.data is not None:
        found.append(_data_digest(own.data(task.split_seed)))
    found += [network_identity(make) for make in (own.student, own.teacher) if make is not None]
    if own.known_teacher is not None:
        known = own.known_teacher
        found.append(_digest({"logits": known} if isinstance(known, Tensor) else known.state_dict()))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def network_identity(make: Callable[[int], nn.Module]) -> str:
    """What a network of a user's own is: its modules, the source of their classes, and the weights of seed 0."""
    network = make(0)
    kinds = {type(module) for module in network.modules() if not type(module).__module__.startswith("torch.")}
    source = [_source(kind) for kind in sorted(kinds, key=lambda kind: kind.__qualname__)]
    return _digest(network.state_dict(), "\n".join([repr(network), *source]))


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter
        return kind.__qualname__


def _data_digest(dataset: Dataset) -> str:
    splits = {name: getattr(dataset, name) for name in ("train", "probe", "validation", "test")}
    found = {name: value for name in ("mean", "std") if (value := getattr(dataset, name)) is not None}
    for name, split in splits.items():
        kinds = ["images", "labels", *map(str, range(100))]  # as the first version named them
        found |= {f"{name} {kind}": tensor for kind, tensor in zip(kinds, split.content(), strict=False)}
    how = "" if dataset.augmentation == ("shift", "mirror") else f" {'+'.join(dataset.augmentation)}"
    return _digest(found, f"{dataset.num_classes} classes, augment {dataset.augment}{how}")


def _digest(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """Of names, shapes, number formats and values."""
    digest = hashlib.sha256(more.encode())
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)};".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    """Of as much of a file as any policy or module may hold, and of nothing that never ends."""
    try:
        with file.open("rb") as stream:
            return hashlib.sha256(stream.read(MAX_FILE_BYTES)).hexdigest()
    except OSError as error:
        raise BadInputError(f"cannot read {file}: {error}") from error


def _leaf(rule: str) -> str:
    """The rule behind its wrappers."""
    name, options = split_spec(rule)
    return _leaf(options) if name in WRAPPERS and options else rule


def _is_policy(leaf: str) -> bool:
    return split_spec(leaf)[0] not in METHODS and is_policy(leaf)


def _file(leaf: str) -> Path | None:
    """The file that a rule is read from, which a method of the tables has not."""
    name, attribute = split_spec(leaf)
    if name in METHODS:
        return None
    if _is_policy(leaf):
        return named_policy(leaf)[0]
    try:
        found = find_spec(name) if attribute else None
    except (ImportError, ValueError):  # its package is gone, or the module is the program itself
        found = None
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def conditions() -> dict[str, str]:
    """What the same numbers depend on beside the configuration, by name."""
    found = versions()
    wanted = ("python", "torch", "numpy", "stable-baselines3", "rltemp")
    return {name: found[name] for name in wanted if name in found} | {
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
    }


def random_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch."""
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # SB3 draws from it
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [keys.tolist(), *rest],  # type: ignore[union-attr]  # the legacy form is a tuple
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global generators back where `random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), *rest))  # noqa: NPY002  # SB3 draws from it
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
