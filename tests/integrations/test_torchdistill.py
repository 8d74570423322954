"""torchdistill, unmodified, with temperatures from a YAML alone, against rltemp's own loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hosts import RULES, differs, host, networks, own_loop, run_block
from support.kits import torchdistill_box, torchdistill_loop
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Method, Signals, kd_loss

host("torchdistill.core.distillation")


def test_at_fixed_temperatures_the_loss_is_torchdistills_own(tmp_path: Path) -> None:
    ours = torchdistill_box(tmp_path, ("rule: 'universal'", "rule: 'fixed:4'"))
    own = "temperature: 4.0\n              alpha: 0.1"
    kd_loss = torchdistill_box(tmp_path, ("TemperatureKDLoss", "KDLoss"), ("rule: 'universal'", own))
    assert torchdistill_loop(ours) == pytest.approx(torchdistill_loop(kd_loss), rel=1e-5)


def test_a_resumed_run_knows_where_it_is(tmp_path: Path) -> None:
    found = torchdistill_loop(torchdistill_box(tmp_path, ("num_epochs: 2", "num_epochs: 4")), start_epoch=2)
    assert found == pytest.approx(own_loop("universal", epochs=2, progress=lambda done: 0.5 + done / 2), rel=1e-5)


def test_each_stage_has_a_progress_of_its_own(tmp_path: Path) -> None:
    student, _ = networks()
    wanted = [loss for _ in range(2) for loss in own_loop("universal", epochs=2, start=student)]
    assert torchdistill_loop(torchdistill_box(tmp_path, stages=2)) == pytest.approx(wanted, rel=1e-5)


def test_weights_may_be_the_files(tmp_path: Path) -> None:
    def soft(method: Method, signals: Signals) -> Tensor:
        return 0.5 * kd_loss(signals, method.rule(signals)).mean()

    weights = "rule: 'universal'\n              ce_weight: 0\n              kd_weight: 0.5"
    box = torchdistill_box(tmp_path, ("rule: 'universal'", weights))
    assert torchdistill_loop(box) == pytest.approx(own_loop("universal", epochs=2, loss=soft), rel=1e-5)


def test_without_its_process_the_first_step_says_what_to_add(tmp_path: Path) -> None:
    box = torchdistill_box(tmp_path, ("pre_epoch_process: 'follow_progress'", ""))
    with pytest.raises(BadInputError, match="does not know how far the training is; add to the stage in the YAML"):
        torchdistill_loop(box)


def test_a_misspelt_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="did you mean"):
        torchdistill_box(tmp_path, ("rule: 'universal'", "rule: 'dkdt'"))


@pytest.mark.parametrize("rule", RULES)
def test_torchdistills_loss_divides_each_sample_by_its_own_temperature(rule: str) -> None:
    """The page on kits with one temperature, step by step, against KL at a temperature for each sample."""

    def kit(method: Method, signals: Signals) -> Tensor:
        seen = {"student_logits": signals.student_logits, "teacher_logits": signals.teacher_logits}
        seen |= {"labels": signals.labels, "progress": signals.progress}
        return run_block("one-temperature", ('"universal"', f'"{rule}"'), **seen)["loss"]

    def plain(method: Method, signals: Signals) -> Tensor:
        found = method.rule(signals).detach()
        student = signals.student_logits / found.student[:, None]
        teacher = signals.teacher_logits / found.teacher[:, None]
        divergence = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
        return 0.1 * F.cross_entropy(signals.student_logits, signals.labels) + 0.9 * 16 * divergence

    found = own_loop(rule, loss=kit)
    assert found == pytest.approx(own_loop(rule, loss=plain), rel=1e-5)
    assert differs(found, own_loop("fixed:4", loss=plain))
