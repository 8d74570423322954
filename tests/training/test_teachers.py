"""A teacher is trained once for what determines it, and a damaged one is never used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.pictures import write_folder

from rltemp import ArtifactRefusedError, BadInputError
from rltemp.data.problem import Problem, evaluate
from rltemp.data.sources import load_dataset
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.io.files import cache_folder
from rltemp.models.networks import seeded_model
from rltemp.models.weight_files import save_weights
from rltemp.training.preparation import prepare
from rltemp.training.teachers import teacher_file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


def quick(**overrides: object) -> Task:
    return load_task("digits", **{"teacher": "mlp:16", "teacher_epochs": 1, **overrides})


def prepared_in(task: Task) -> tuple[Problem, int]:
    """The problem, and how many steps its teacher was trained for."""
    steps: list[tuple[int, int]] = []
    problem = prepare(task, on_step=lambda *step: steps.append(step))
    if steps:
        assert steps == [(step + 1, len(steps)) for step in range(len(steps))]
    return problem, len(steps)


def test_a_teacher_is_trained_once_and_then_read(cache: Path) -> None:
    first, steps = prepared_in(quick())
    assert steps == len(first.dataset.train) // 50
    assert len(list(cache.iterdir())) == 1
    second, steps = prepared_in(quick())
    assert steps == 0
    assert torch.equal(first.teacher_logits, second.teacher_logits)
    assert first.teacher_accuracy == second.teacher_accuracy
    assert prepared_in(quick(student="mlp:3", epochs=2, metric="log_likelihood"))[1] == 0  # another student alone
    [file] = cache.iterdir()
    assert file == teacher_file(quick(), first.dataset) != teacher_file(quick(), load_dataset("digits", 1))


def test_another_seed_recipe_network_or_split_is_another_teacher(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"teacher_seed": 1, "teacher_epochs": 2, "teacher_learning_rate": 0.05, "split_seed": 1}
    for change in ({}, {"teacher": "mlp:17"}, *({name: value} for name, value in numbers.items())):
        assert prepared_in(quick(**change))[1] > 0
    assert len(list(cache.iterdir())) == 6
    monkeypatch.setenv("RLTEMP_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "rltemp"


def test_a_prepared_teacher_is_good_frozen_and_in_eval_mode(digits: Problem) -> None:
    assert digits.teacher_accuracy > 0.9
    assert digits.teacher_accuracy == pytest.approx(evaluate(digits.teacher, digits, digits.dataset.test).item())
    assert not digits.teacher.training
    assert not any(parameter.requires_grad for parameter in digits.teacher.parameters())
    assert digits.teacher_logits.shape == (len(digits.dataset.train), 10)


def test_the_toys_teacher_needs_no_training_and_no_file(cache: Path) -> None:
    problem, steps = prepared_in(load_task("toy"))
    assert steps == 0
    assert not cache.exists()
    assert problem.teacher_logits.shape == (len(problem.dataset.train), 4)


def test_a_teacher_of_ones_own_is_read_and_not_trained(cache: Path, tmp_path: Path) -> None:
    own = seeded_model("mlp:16", (1, 8, 8), 10, 42)
    save_weights(own, tmp_path / "own.safetensors", {})
    problem, steps = prepared_in(quick(teacher_weights=str(tmp_path / "own.safetensors")))
    assert steps == 0
    assert not cache.exists()
    for name, value in problem.teacher.state_dict().items():
        assert torch.equal(value, own.state_dict()[name])


def test_a_teachers_file_that_is_missing_or_of_another_network_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        prepare(quick(teacher_weights=str(tmp_path / "none.safetensors")))
    save_weights(seeded_model("mlp:8", (1, 8, 8), 10, 0), tmp_path / "other.safetensors", {})
    with pytest.raises(ArtifactRefusedError, match="does not fit this network"):
        prepare(quick(teacher_weights=str(tmp_path / "other.safetensors")))
    assert not cache.exists()


def test_a_damaged_teacher_in_the_cache_is_refused_and_not_replaced(cache: Path) -> None:
    prepared_in(quick())
    [file] = cache.iterdir()
    good = file.read_bytes()
    for damaged in (b"", good[:100], good[:-1], b"\xff" * len(good)):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactRefusedError, match="is not a safetensors file"):
            prepared_in(quick())
        assert file.read_bytes() == damaged
    file.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
    with pytest.raises(ArtifactRefusedError, match=f"SHA-256 mismatch.*Delete {file}: the teacher is then trained"):
        prepared_in(quick())
    file.write_bytes(good)
    tensors = dict(load_file(file))
    tensors[next(iter(tensors))].view(-1)[0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ArtifactRefusedError, match="not finite"):
        prepared_in(quick())


def test_a_teachers_file_names_no_folder(cache: Path, tmp_path: Path) -> None:
    counts = {"cat": 25, "dog": 25}
    write_folder(tmp_path / "flowers", {"train": counts, "test": counts})
    task = load_task(f"imagefolder:{tmp_path / 'flowers'}", teacher="mlp:4", teacher_epochs=1, teacher_batch_size=8)
    prepare(task)
    [file] = cache.iterdir()
    with safe_open(file, "pt") as stored:
        assert stored.metadata()["task"] == "imagefolder:flowers"
    assert str(tmp_path).encode() not in file.read_bytes()


def test_a_teacher_whose_classes_are_in_another_order_is_warned_about(cache: Path, tmp_path: Path, caplog) -> None:
    prepare(quick())
    assert "most frequent class" not in caplog.text
    [file] = cache.iterdir()
    weights = load_file(file)
    moved = [0, 9, *range(1, 9)]
    last = sorted(weights)[-2:]
    save_file(
        {name: value[moved] if name in last else value for name, value in weights.items()}, tmp_path / "t.safetensors"
    )
    problem = prepare(quick(teacher_weights=str(tmp_path / "t.safetensors")))
    assert problem.teacher_accuracy < 0.2
    [line] = [text for text in caplog.messages if "most frequent class" in text]
    assert f"Teacher mlp:16 has {100 * problem.teacher_accuracy:.2f} % test accuracy" in line
    assert "in another order, its pictures normalised otherwise (--normalise)" in line


def test_a_teachers_logits_in_another_order_are_warned_about(caplog) -> None:
    rows, labels = torch.randn(200, 4), torch.arange(200) % 2
    logits = 4.0 * torch.nn.functional.one_hot(labels, 2)
    own = {"student": "linear", "train": (rows, labels), "batch_size": 10}
    prepare(Task.of(**own, teacher=logits))
    assert not caplog.messages
    prepare(Task.of(**own, teacher=logits.roll(1, 0)))
    [line] = [text for text in caplog.messages if "most frequent class" in text]
    assert "has 0.00 % validation accuracy" in line
