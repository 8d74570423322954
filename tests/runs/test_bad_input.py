"""What cannot be used of a task of one's own is refused in one line; nothing is trained first, and nothing is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.processes import code
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rltemp

INPUTS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


def student(seed: int) -> nn.Module:
    return nn.Linear(5, 3)


def teacher(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


class Answers(nn.Module):
    """Answers what a function makes of its logits."""

    def __init__(self, change: Callable[[Tensor, bool], object]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(5, 3), change

    def forward(self, inputs: Tensor) -> object:
        return self.change(self.layer(inputs), self.training)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("no\nbackward")


class Items(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 60

    def __getitem__(self, place: int) -> Any:
        return self.item(place)


def task(**parts: Any) -> rltemp.Task:
    given = {"student": student, "teacher": teacher, "train": (INPUTS, LABELS), "epochs": 1, "teacher_epochs": 1}
    return rltemp.Task.of(**{**given, "batch_size": 8, "teacher_batch_size": 8, **parts})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, where nothing is but what a test puts there."""
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(made: Callable[[], rltemp.Task], said: str, rule: str = "fixed:2", **options: Any) -> None:
    before = set(Path.cwd().rglob("*"))
    with pytest.raises(rltemp.BadInputError) as error:
        rltemp.distill(made(), rule, "out", **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert set(Path.cwd().rglob("*")) == before, "something is left behind"


def exits(*_: object) -> Any:
    raise SystemExit(0)


def other_each_time(seed: int, made: list[int] = []) -> nn.Module:  # noqa: B006  # it counts its calls
    made.append(seed)
    return nn.Linear(5, 3) if len(made) % 2 else nn.Sequential(nn.Linear(5, 3))


def unseeded(seed: int) -> nn.Module:
    network = nn.Linear(5, 3)
    network.weight.data = torch.tensor(np.random.default_rng().normal(size=(3, 5))).float()
    return network


ONE = student(0)
NETWORKS: dict[str, tuple[Callable[..., Any], str]] = {
    "another number of classes": (lambda seed: nn.Linear(5, 4), "answers 4 classes"),
    "fewer classes": (lambda seed: nn.Linear(5, 2), "answers 2 classes"),
    "other inputs": (lambda seed: nn.Linear(7, 3), "cannot take the task's inputs (RuntimeError"),
    "None": (lambda seed: None, "must return a torch module; got a NoneType"),
    "a class": (lambda seed: nn.Linear, "must return a torch module; got a type"),
    "an error": (lambda seed: 1 / 0, "raised ZeroDivisionError"),
    "the end": (exits, "raised SystemExit"),
    "no parameters": (lambda seed: nn.Flatten(), "no parameters to train"),
    "lazy": (lambda seed: nn.LazyLinear(3), "lazy module"),
    "one object": (lambda seed: ONE, "the same network for every seed"),
    "another for one seed": (other_each_time, "another network each time for one seed"),
    "other weights for one seed": (unseeded, "another network each time for one seed"),
    "answers None": (lambda seed: Answers(lambda logits, _: None), "got a NoneType"),
    "answers a tuple": (lambda seed: Answers(lambda logits, _: (logits, logits)), "got a tuple"),
    "answers integers": (lambda seed: Answers(lambda logits, _: logits.long()), "torch.int64"),
    "answers no batch": (lambda seed: Answers(lambda logits, _: logits.sum()), "of 2 samples it makes ()"),
    "answers one sample": (lambda seed: Answers(lambda logits, _: logits[:1]), "of 2 samples it makes (1, 3)"),
    "answers NaN": (lambda seed: Answers(lambda logits, _: logits * float("nan")), "no finite number"),
    "raises": (lambda seed: Answers(lambda logits, _: 1 / 0), "(ZeroDivisionError: division by zero)"),
    "exits": (lambda seed: Answers(exits), "(SystemExit: 0)"),
    "no graph": (lambda seed: Answers(lambda logits, _: logits.detach()), "answers without a graph"),
    "no gradient": (lambda seed: Answers(lambda logits, _: NoGradient.apply(logits)), "no gradient (RuntimeError: no)"),
    "raises in eval mode": (lambda seed: Answers(lambda logits, on: logits if on else 1 / 0), "in eval mode"),
    "other in eval mode": (lambda seed: Answers(lambda logits, on: logits if on else logits[:, :2]), "in eval mode"),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_is_tried_before_anything_is_trained(role: str, kind: str) -> None:
    make, said = NETWORKS[kind]
    refused(lambda: task(**{role: make}), said)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Linear(5, 4), "student student answers 3 classes; teacher and labels have 4"),
        (nn.Linear(7, 3), "teacher Linear cannot take the task's inputs"),
        (Answers(lambda logits, _: logits.long()), "teacher Answers must answer with logits"),
        (Answers(lambda logits, _: logits[:1]), "teacher Answers must answer with logits"),
        (Answers(lambda logits, _: logits.sum()), "teacher Answers must answer with logits"),
        (Answers(lambda logits, _: 1 / 0), "teacher Answers cannot take the task's inputs"),
        (Answers(lambda logits, _: logits * float("nan")), "teacher Answers answers with no finite number"),
        (
            Answers(lambda logits, _: torch.where(logits == logits.max(), torch.nan, logits)),
            "its logits of 1 of 36",
        ),
    ],
)
def test_a_trained_teacher_is_tried_too(network: nn.Module, said: str) -> None:
    refused(lambda: task(teacher=network), said)


def test_batch_norm_that_gets_one_sample_is_refused_for_both_networks() -> None:
    def normalised(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    refused(lambda: task(student=normalised, batch_size=1), "student normalised has BatchNorm")
    refused(lambda: task(teacher=normalised, teacher_batch_size=1), "teacher normalised has BatchNorm")


PATHS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda inputs, labels: (inputs, labels),
    "arrays": lambda inputs, labels: (inputs.numpy(), labels.numpy()),
    "dictionary": lambda inputs, labels: {"inputs": inputs, "labels": labels},
    "data set": TensorDataset,
    "loader": lambda inputs, labels: DataLoader(TensorDataset(inputs, labels), batch_size=4),
    "list": lambda inputs, labels: list(zip(inputs, labels, strict=True)),
    "generator": lambda inputs, labels: (pair for pair in zip(inputs, labels, strict=True)),
    "dictionaries": lambda inputs, labels: [
        {"inputs": one, "labels": label} for one, label in zip(inputs, labels, strict=True)
    ],
}
NINE, BELOW, NAN = LABELS.clone(), LABELS.clone(), INPUTS.clone()
NINE[7], BELOW[7], NAN[9, 2] = 9, -1, torch.nan


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (INPUTS[:0], LABELS[:0], "train is empty"),
        (INPUTS[:3], LABELS[:3], "train holds 3 samples; needed: 4 or more"),
        (INPUTS, NINE, "student student answers 3 classes; teacher and labels have 10"),
        (INPUTS, BELOW, "label -1 at [7] is no class"),
        (INPUTS, LABELS.float(), "labels must be whole numbers"),
        (INPUTS, LABELS > 0, "labels must be whole numbers"),
        (INPUTS, LABELS[:, None], "train: labels have shape (36, 1); needed: [N], for the student answers [N, 3]"),
        (NAN, LABELS, "train: an input is NaN, at [9, 2]"),
    ],
)
def test_data_are_checked_on_every_path(path: str, inputs: Tensor, labels: Tensor, said: str) -> None:
    refused(lambda: task(train=PATHS[path](inputs, labels)), said)


def breaks(place: int) -> Any:
    return (INPUTS[place], 0) if place < 7 else 1 / 0


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda: None, "train is None"),
        (lambda: 5, "train is a int"),
        (lambda: "digitz", "did you mean 'digits'"),
        (lambda: (np.array(["a", "b", "c"] * 20), LABELS), "no batch can be made of it (can't convert np.ndarray"),
        (lambda: (INPUTS.to_sparse(), LABELS), "dense tensors"),
        (lambda: (torch.tensor(3.0), torch.tensor(1)), "samples along the first axis"),
        (lambda: (INPUTS, LABELS[:50]), "needed: inputs [N, ...] and labels [N, ...]"),
        (lambda: {"inputs": INPUTS, "labels": LABELS, "mask": LABELS[:50] > 0}, "the mask has shape (50,)"),
        (lambda: Items(breaks), "train (a Items) raised ZeroDivisionError"),
        (lambda: Items(exits), "train (a Items) raised SystemExit"),
        (lambda: Items(lambda place: (torch.zeros(place + 1), 0)), "no batch can be made of it"),
        (lambda: (breaks(place) for place in range(60)), "train (a generator) raised ZeroDivisionError"),
        (lambda: iter(()), "train is empty"),
    ],
)
def test_data_that_cannot_be_read_are_refused(train: Callable[[], Any], said: str) -> None:
    refused(lambda: task(train=train()), said)


def test_items_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.data.own.MOST_BYTES", 1 << 20)

    def endless() -> Iterator[Any]:
        while True:
            yield INPUTS[0], 0

    refused(lambda: task(train=endless()), "train (a generator) does not end")


def test_a_split_that_the_student_cannot_take_is_named() -> None:
    refused(lambda: task(test=(torch.zeros(20, 4), LABELS[:20])), "test: student student cannot take")
    refused(lambda: task(test="digits"), "test is a str")
    refused(lambda: task(validation=(NAN, LABELS)), "validation: an input is NaN")


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (torch.zeros(50, 3), "teacher logits have shape (50, 3); needed: (60, 3)"),
        (torch.zeros(60, 4), "student student answers 3 classes; teacher and labels have 4"),
        (torch.zeros(60, 2, 3), "teacher logits have shape (60, 2, 3)"),
        (torch.zeros(60), "teacher logits must be [N, ..., C], floats"),
        (torch.zeros(60, 3).long(), "teacher logits must be [N, ..., C], floats"),
        (torch.full((60, 3), torch.inf), "36 of 36 training samples are not finite"),
        (np.array([None]), "teacher logits raised TypeError"),
    ],
)
def test_logits_that_do_not_fit_are_refused(logits: Any, said: str) -> None:
    refused(lambda: task(teacher=logits), said)


def test_a_file_of_two_tensors_is_no_file_of_logits(folder: Path) -> None:
    save_file({"a": torch.zeros(60, 3), "b": torch.ones(60, 3)}, folder / "two.safetensors")
    refused(lambda: task(teacher="two.safetensors"), "must hold one tensor")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "lbfgs"}, "needs a closure"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)}, "got SGD ( Parameter Group 0"),
        ({"optimizer": "adamw", "momentum": 0.9}, "takes no momentum"),
        ({"warmup": "a"}, r"warmup must be in [0, 1); got 'a'"),
        ({"schedule": 3}, "unknown schedule 3"),
        ({"metric": "accurate"}, "unknown metric 'accurate': did you mean 'accuracy'"),
        ({"split_seed": "a"}, "split_seed must be a whole number"),
        ({"name": 3}, "name must be a str; got 3"),
        ({"recipe": None}, "recipe must be a Recipe; got None"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    refused(lambda: task(**options), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1.5}, "option seed cannot be 1.5"),
        ({"device": "gpu"}, "option device cannot be 'gpu'"),
        ({"student": "mlp:4", "epochs": "many"}, "option epochs cannot be 'many'"),
        ({"rule": None}, "option rule cannot be None"),
        ({"sed": 1}, "did you mean 'seed'"),
    ],
)
def test_options_in_python_are_of_their_types(options: dict[str, Any], said: str) -> None:
    given = {"rule": "fixed:2", **options}
    with pytest.raises(rltemp.BadInputError, match="option"):
        rltemp.distill(task(), given.pop("rule"), "out", **given)
    with pytest.raises(rltemp.BadInputError, match="task must be a name or of"):
        rltemp.compare(task, ["none"])  # type: ignore[arg-type]  # that is the mistake
    assert not list(Path.cwd().iterdir())


def test_networks_and_optimizers_among_the_options_are_used() -> None:
    options: dict[str, Any] = {"student": lambda seed: Answers(lambda logits, _: logits), "teacher": nn.Linear(5, 3)}
    result = rltemp.distill(task(), "dtkd", "out", optimizer=torch.optim.AdamW, **options)
    assert (result["student"], result["task"]["teacher"]) == ("<lambda>", "Linear")
    assert result["task"]["recipe"]["optimizer"] == "adamw"


def test_a_named_seed_and_draws_from_numpy_are_used() -> None:
    def drawn(*, seed: int) -> nn.Module:
        network = nn.Linear(5, 3)
        network.weight.data = torch.tensor(np.random.rand(3, 5)).float()  # noqa: NPY002  # as people do
        return network

    first, again = (rltemp.distill(task(student=drawn), "none", out, seed=2) for out in ("a", "b"))
    assert first == again


MODULE = """
import sys
import torch
import rltemp
from torch import nn

def student(seed): return nn.Linear(5, 3)
def teacher(seed): return nn.Linear(5, 3)
def task(): return rltemp.Task.of(student=student, teacher=teacher, train=(torch.zeros(60, 5), torch.arange(60) % 3))
def ends(): sys.exit(0)
def wants(a, b): return task()
def nothing(): task()
def rule(signals): sys.exit(0)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "mine.py"), "mine.py: needed is FILE.py:name"),
        (("--task", "mine.py:task()"), "needed is FILE.py:name"),
        (("--task", "mine.py:taks"), "mine.py has no 'taks'"),
        (("--task", "none.py:task"), "no file none.py"),
        (("--task", "mine.py:ends"), "mine.py:ends raised SystemExit: 0"),
        (("--task", "mine.py:wants"), "mine.py:wants raised TypeError"),
        (("--task", "mine.py:nothing"), "must return a task"),
        (("--task", "wine", "--student", "mine.py"), "mine.py: needed is FILE.py:name"),
        (("--task", "wine", "--teacher", "mine.py:student"), "teacher mine.py:student cannot take"),
        (("--task", "mine.py:task", "--rule", "mine.py"), "mine.py: needed is FILE.py:name"),
        (("--task", "random.py:task"), "another module is named random already"),
        (("--task", "broken.py:task"), "broken.py raised SyntaxError"),
        (("--task", "ending.py:task"), "ending.py raised SystemExit"),
    ],
)
def test_a_file_of_ones_own_is_refused_in_one_line(
    words: tuple[str, ...], said: str, folder: Path, capsys, monkeypatch
) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # a file of another test's folder
    texts = {"mine": MODULE, "random": MODULE, "broken": "def f(:", "ending": "import sys; sys.exit(0)"}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    before = set(folder.iterdir())
    assert code("distill", "--out", "out", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert set(folder.iterdir()) - {folder / "__pycache__"} == before


def test_a_rule_in_a_folder_is_used_one_that_exits_is_a_mistake(folder: Path, capsys) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "rules_of_mine.py").write_text(MODULE)
    words = ("--task", "toy", "--epochs", 1, "--rule", "sub/rules_of_mine.py:rule", "--out", "out")
    assert code("distill", *words) == 2
    assert "your code raised SystemExit: 0" in capsys.readouterr().err
    assert not (folder / "out").exists()
