import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rltemp.data.problem import Problem, evaluate
from rltemp.experiments.measures import MEASURES, VALIDATION_LOSS, Selection, calibration_error, loss, measure
from rltemp.experiments.students import by_name, train_method, train_stack
from rltemp.loading import load_method
from rltemp.training.distill import Distillation


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_measures_of_three_samples_worked_by_hand():
    # Confidences 0.8, 0.5 and 0.6, of which the first two are right; bins 12, 8 and 9 hold one each.
    student = logits_of([[0.8, 0.2], [0.5, 0.5], [0.4, 0.6]])
    student[1, 0] += 1e-9
    found = measure(student, torch.tensor([0, 0, 0]), logits_of([[0.9, 0.1], [0.1, 0.9], [0.2, 0.8]]))
    assert set(found) == {"calibration_error", "negative_log_likelihood", "agreement"}, (
        "top-5 of two classes says nothing"
    )
    assert float(found["calibration_error"]) == pytest.approx((0.2 + 0.5 + 0.6) / 3)
    assert float(found["negative_log_likelihood"]) == pytest.approx(-math.log(0.8 * 0.5 * 0.4) / 3)
    assert float(found["agreement"]) == pytest.approx(2 / 3)


def test_the_loss_is_the_mean_negative_log_likelihood():
    logits, labels = logits_of([[0.8, 0.2], [0.5, 0.5]]), torch.tensor([0, 1])
    both = torch.stack([logits, torch.full_like(logits, math.nan)])
    assert loss(both, labels).tolist() == pytest.approx([-math.log(0.8 * 0.5) / 2, math.nan], nan_ok=True)
    assert float(loss(logits, labels)) == float(measure(logits, labels, logits)["negative_log_likelihood"])


def test_samples_may_make_up_for_each_other_only_within_one_bin():
    right = torch.tensor([True, False])
    same, apart = torch.tensor([0.51, 0.52]).double(), torch.tensor([0.51, 0.55]).double()
    assert float(calibration_error(same, right)) == pytest.approx(0.03 / 2)
    assert float(calibration_error(apart, right)) == pytest.approx((0.49 + 0.55) / 2)
    on_its_upper_bound = torch.tensor([8 / 15, 0.5], dtype=torch.float64)  # both in (7/15, 8/15]
    assert float(calibration_error(on_its_upper_bound, right)) == pytest.approx((1 / 30) / 2)


def test_top_five_counts_labels_among_the_five_largest_of_ten_classes():
    logits = torch.arange(10.0).expand(4, 10)
    found = measure(logits, torch.tensor([9, 5, 4, 0]), logits)
    assert float(found["top5_accuracy"]) == 0.5
    assert float(found["agreement"]) == 1.0


def test_a_stack_is_measured_as_its_students_alone_even_if_one_diverged():
    drawn = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(3, 20, 10, generator=drawn), torch.randn(20, 10, generator=drawn)
    labels = torch.randint(10, (20,), generator=drawn)
    logits[1, 3, 2] = math.nan
    together = measure(logits, labels, teacher)
    for student in (0, 2):
        alone = measure(logits[student], labels, teacher)
        assert {name: float(row[student]) for name, row in together.items()} == {k: float(v) for k, v in alone.items()}
    assert together["negative_log_likelihood"].isnan().tolist() == [False, True, False]
    assert together["calibration_error"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("seeds", [0, [0, 1, 2]])
def test_the_first_best_validation_epoch_gives_the_reported_test_accuracy(toy: Problem, seeds: int | list[int]):
    run, method = Distillation(toy, seeds), load_method("fixed:4")
    selection, validation, test = Selection(run), [], []
    while not run.done:
        run.update(method.loss(run.observe()))
        selection.evaluate()
        if run.step % run.steps_per_epoch == 0:
            validation.append(evaluate(run.student, toy, toy.dataset.validation).reshape(-1).tolist())
            test.append(evaluate(run.student, toy, toy.dataset.test).reshape(-1).tolist())
    best = np.argmax(validation, axis=0)
    found = selection.measure()
    assert found["selected_epoch"].reshape(-1).tolist() == (best + 1).tolist()
    expected = [test[epoch][student] for student, epoch in enumerate(best)]
    assert found["selected_accuracy"].reshape(-1).tolist() == pytest.approx(expected, abs=1e-6)
    assert set(best) != {len(validation) - 1}, "the last epoch alone would show nothing"


def test_evaluating_on_validation_data_changes_no_student(toy: Problem):
    found = train_stack(toy, [0, 1], by_name("dtkd"))
    run, method = Distillation(toy, [0, 1]), load_method("dtkd")
    while not run.done:
        run.update(method.loss(run.observe()))
    plain = evaluate(run.student, toy, toy.dataset.test)
    assert found.test_accuracy == pytest.approx(plain.tolist(), abs=1e-6)


def test_a_batch_norm_students_statistics_are_selected_with_its_weights(make_problem):
    images, labels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1] * 4)
    problem = make_problem(images, labels, student="resnet8", epochs=2, batch_size=4)
    run = Distillation(problem, 0)
    selection = Selection(run)
    run.step = run.steps_per_epoch
    selection.evaluate()
    before = {name: value.clone() for name, value in run.student.state_dict().items()}
    selection._best = torch.full_like(selection._best, 2.0)  # no later epoch is better
    while not run.done:
        run.update(load_method("none").loss(run.observe()))
        selection.evaluate()
    last = {name: value.clone() for name, value in run.student.state_dict().items()}
    assert not all(torch.equal(last[name], before[name]) for name in last)
    selected = selection.selected().state_dict()
    assert all(torch.equal(selected[name], before[name]) for name in last)
    assert selection.measure()["selected_epoch"] == 1
    assert all(torch.equal(value, last[name]) for name, value in run.student.state_dict().items()), "they stay"


def test_a_method_has_every_measure_of_every_student(digits: Problem):
    result = train_method(digits, "fixed:4", [0, 1, 2], 2)
    assert [*result.measures] == [*MEASURES, VALIDATION_LOSS]
    assert {row.shape for row in result.measures.values()} == {(3,)}
    assert (result.measures["top5_accuracy"] >= result.test_accuracy).all()
    teacher = digits.teacher_accuracy
    # They agree at least where both are right, and at most where they are not right on different samples.
    assert (result.measures["agreement"] >= result.test_accuracy + teacher - 1).all()
