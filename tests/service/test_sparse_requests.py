"""A served rule or policy answers for a teacher of which only the top is known, as in process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rltemp import SparseTeacher, load_rule
from rltemp.service.refusals import Refusal
from rltemp.service.repository import Repository
from rltemp.service.strict_values import Array

REPOSITORY = Repository()


def request_of(tail: bool = True) -> tuple[dict[str, Array], SparseTeacher]:
    random = np.random.default_rng(0)
    student, logits = random.standard_normal((2, 3, 50)).astype("<f4"), 3 * random.standard_normal((3, 50))
    teacher = SparseTeacher.of_logits(torch.from_numpy(np.stack([logits, logits])).float(), 8, tail)
    inputs = {
        "student_logits": student,
        "teacher_ids": teacher.ids.numpy(),
        "teacher_log_probs": teacher.log_probs.numpy(),
        "labels": random.integers(0, 50, (2, 3)),
        "progress": np.array([0.25], "<f4"),
    }
    return inputs | ({} if teacher.tail is None else {"tail": teacher.tail.numpy()}), teacher


@pytest.mark.parametrize("name", ["universal", "fixed:4", "dtkd", "normkd", "idts"])
@pytest.mark.parametrize("tail", [True, False])
def test_the_top_of_a_teacher_is_answered_as_in_process(name: str, tail: bool) -> None:
    inputs, teacher = request_of(tail)
    student, labels = torch.from_numpy(inputs["student_logits"]), torch.from_numpy(inputs["labels"])
    expected = load_rule(name)(teacher.signals(student, labels, 0.25))
    found = REPOSITORY.find(name).infer(inputs, None).outputs
    for output, values in expected.outputs().items():
        np.testing.assert_allclose(found[output], values.float().numpy(), rtol=1e-6, atol=1e-6)
    assert tail or found["teacher_temperature"].max() <= 1


def test_what_does_not_belong_together_is_refused() -> None:
    inputs, _ = request_of()
    wrong = inputs["teacher_ids"].copy()
    wrong[1, 2, 0] = 50
    for change, message in (
        ({"teacher_logits": inputs["student_logits"]}, "send teacher_logits, or teacher_ids"),
        ({"teacher_ids": None}, "teacher_ids is missing"),
        ({"teacher_ids": wrong}, "token [1, 2] has an id that is no class; needed: 0 to 49"),
        ({"labels": np.full((2, 3), 50)}, "needed: 0 to 49"),
    ):
        sent = {name: array for name, array in (inputs | change).items() if array is not None}
        with pytest.raises(Refusal) as found:
            REPOSITORY.find("fixed:1").infer(sent, None)
        assert message in found.value.message
