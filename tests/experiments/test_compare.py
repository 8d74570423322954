import numpy as np
import pytest
import torch

from rltemp.data.problem import Problem, evaluate
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.compare import compare
from rltemp.experiments.grid import alternatives, check_rules
from rltemp.experiments.measures import LOSS
from rltemp.experiments.options import SELECTION_SEED
from rltemp.experiments.students import train_method
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def toy() -> Problem:
    return prepare(load_task("toy", epochs=1))


def test_alternatives_of_two_options_are_all_their_pairs():
    assert alternatives("dtkd:reference=1|2,warmup=0|1") == [
        "dtkd:reference=1,warmup=0",
        "dtkd:reference=1,warmup=1",
        "dtkd:reference=2,warmup=0",
        "dtkd:reference=2,warmup=1",
    ]


@pytest.mark.parametrize("spec", ["none", "fixed:4", "runs/a|b/policy.safetensors", "module:a|b"])
def test_what_lists_nothing_is_itself(spec: str):
    assert alternatives(spec) == [spec]


def test_students_in_a_stack_are_those_that_the_plain_loop_trains(toy: Problem):
    alone = [train(Distillation(toy, seed), load_method("fixed:2")) for seed in (3, 4, 5)]
    expected = [float(evaluate(student, toy, toy.dataset.test)) for student in alone]
    for stack in (1, 2, 64):
        result = train_method(toy, "fixed:2", [3, 4, 5], stack)
        np.testing.assert_allclose(result.test_accuracy, expected, atol=0.006)  # a sample or two of rounding


def test_the_alternative_that_is_best_on_validation_is_the_one_reported(toy: Problem):
    chooser = list(range(SELECTION_SEED, SELECTION_SEED + 4))
    means = {t: train_method(toy, f"fixed:{t}", chooser, 64).validation_accuracy.mean() for t in ("0.05", "2")}
    best = max(means, key=lambda t: means[t])
    found = compare(toy, ["none", "fixed:0.05|2"], [0, 1], selection_seeds=4)
    assert [one.rule for one in found.results] == ["none", f"fixed:{best}"]
    assert found.names["fixed:0.05|2"] == f"fixed:{best}"
    assert found.results[1].note == f"{best} chosen on validation from 0.05|2"
    np.testing.assert_array_equal(
        found.results[1].test_accuracy, train_method(toy, f"fixed:{best}", [0, 1], 64).test_accuracy
    )


def test_tokens_choose_the_alternative_of_the_least_validation_loss(toy: Problem, monkeypatch: pytest.MonkeyPatch):
    chooser = list(range(SELECTION_SEED, SELECTION_SEED + 4))
    tried = {t: train_method(toy, f"fixed:{t}", chooser, 64) for t in ("0.5", "8")}
    losses = {t: one.measures["validation_loss"].mean() for t, one in tried.items()}
    assert losses["0.5"] < losses["8"]
    assert tried["0.5"].validation_accuracy.mean() < tried["8"].validation_accuracy.mean()
    monkeypatch.setattr("rltemp.experiments.compare.quantity_of", lambda problem: LOSS)
    found = compare(toy, ["fixed:0.5|8"], [0], selection_seeds=4)
    assert (found.results[0].note, found.quantity) == ("0.5 chosen on validation loss from 0.5|8", LOSS)


def test_a_choice_that_is_there_already_is_reported_once(toy: Problem):
    found = compare(toy, ["fixed:2", "fixed:2|2.0"], [0], selection_seeds=1)
    assert [one.rule for one in found.results] == ["fixed:2"]
    assert "chosen" in found.results[0].note


def test_a_diverged_student_is_counted_and_stops_nobody():
    problem = prepare(load_task("toy", student="mlp:8", epochs=1, learning_rate=1e30))
    for stack in (1, 64):
        result = train_method(problem, "dtkd:reference=4", [0, 1], stack)
        assert result.note.startswith("2 of 2 diverged; guarded ")
        assert np.isfinite(result.test_accuracy).all()


def test_progress_counts_every_step_of_every_stack(toy: Problem):
    seen: list[tuple[str, int, int]] = []
    compare(toy, ["none", "fixed:1|2"], [0, 1], selection_seeds=1, on_progress=lambda *told: seen.append(told))
    assert [step for _, step, _ in seen] == list(range(1, len(seen) + 1))
    assert {steps for _, _, steps in seen} == {len(seen)}
    assert seen[0][0] == "fixed:1"


@pytest.mark.parametrize(
    ("rules", "seeds", "message"),
    [
        (["fixed:4", "dtdk"], [0], "did you mean 'dtkd'"),
        (["fixed:4", "fixed:1|0"], [0], "temperature"),
        (["fixed:4", "fixed:4"], [0], "given twice"),
        (["fixed:4"], [SELECTION_SEED], "kept for choosing"),
        ([], [0], "at least one rule"),
    ],
)
def test_a_mistake_is_found_before_any_training(rules: list[str], seeds: list[int], message: str):
    with pytest.raises(BadInputError, match=message):
        check_rules(rules, seeds)


def test_small_perceptrons_are_stacked_and_others_are_not(toy: Problem):
    assert toy.stack_size == 64
    assert prepare(load_task("toy", student="mlp:20000")).stack_size == 1
