"""torchdistill, unmodified, with temperatures from a YAML alone, against rltemp's own loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import RULES, batches, blocks, delicate, differs, flat, host, modes, networks, own_loop
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Method, Signals, kd_loss
from rltemp.integrations import HostVersionWarning

distillation = host("torchdistill.core.distillation")
main_util, yaml_util = host("torchdistill.common.main_util"), host("torchdistill.common.yaml_util")

(YAML,) = blocks("torchdistill", "yaml")


def boxed(folder: Path, *changes: tuple[str, str], stages: int = 0) -> Any:
    """What torchdistill's example script makes of the page's YAML, changed in places: its box."""
    text = YAML
    for before, after in changes:
        assert before in text, f"{before!r} is not in the page"
        text = text.replace(before, after)
    (folder / "digits.yaml").write_text(text, "utf-8")
    config = yaml_util.load_yaml_file(str(folder / "digits.yaml"))
    main_util.import_dependencies(config["dependencies"])
    training = config["train"]
    if stages:
        training = {f"stage{stage + 1}": copy.deepcopy(training) for stage in range(stages)}
    student, teacher = networks()
    data, device = {"digits/train": flat(batches())}, torch.device("cpu")
    return distillation.get_distillation_box(teacher, student, data, training, device, None, False, 1)


def trained(box: Any, start_epoch: int = 0) -> list[float]:
    """The loop of torchdistill's example script: the losses of its batches."""
    losses = []
    for epoch in range(start_epoch, box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, more in box.train_data_loader:
            loss = box.forward_process(images, labels, more)
            losses.append(loss.item())
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
    box.clean_modules()
    return losses


@pytest.mark.parametrize("rule", RULES)
def test_a_yaml_and_rltemps_own_loop_have_the_same_losses(rule: str, tmp_path: Path) -> None:
    found = trained(boxed(tmp_path, ("rule: 'universal'", f"rule: '{rule}'")))
    assert found == pytest.approx(own_loop(rule, epochs=2), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2))
    assert differs(found, own_loop(rule, epochs=2, progress=lambda _: 0.0))


def test_at_fixed_temperatures_the_loss_is_torchdistills_own(tmp_path: Path) -> None:
    ours = boxed(tmp_path, ("rule: 'universal'", "rule: 'fixed:4'"))
    own = "temperature: 4.0\n              alpha: 0.1"
    kd_loss = boxed(tmp_path, ("TemperatureKDLoss", "KDLoss"), ("rule: 'universal'", own))
    assert trained(ours) == pytest.approx(trained(kd_loss), rel=1e-5)


def test_progress_counts_optimizer_steps_under_accumulation(tmp_path: Path) -> None:
    found = trained(boxed(tmp_path, ("key: 'SGD'", "key: 'SGD'\n    grad_accum_step: 4")))
    assert found == pytest.approx(own_loop("universal", epochs=2, accumulate=4), rel=1e-5)


def test_a_resumed_run_knows_where_it_is(tmp_path: Path) -> None:
    found = trained(boxed(tmp_path, ("num_epochs: 2", "num_epochs: 4")), start_epoch=2)
    assert found == pytest.approx(own_loop("universal", epochs=2, progress=lambda done: 0.5 + done / 2), rel=1e-5)


def test_each_stage_has_a_progress_of_its_own(tmp_path: Path) -> None:
    student, _ = networks()
    wanted = [loss for _ in range(2) for loss in own_loop("universal", epochs=2, start=student)]
    assert trained(boxed(tmp_path, stages=2)) == pytest.approx(wanted, rel=1e-5)


def test_weights_may_be_the_files(tmp_path: Path) -> None:
    def soft(method: Method, signals: Signals) -> Tensor:
        rule = method.rule
        assert rule is not None
        return 0.5 * kd_loss(signals, rule(signals)).mean()

    changed = ("rule: 'universal'", "rule: 'universal'\n              ce_weight: 0\n              kd_weight: 0.5")
    assert trained(boxed(tmp_path, changed)) == pytest.approx(own_loop("universal", epochs=2, loss=soft), rel=1e-5)


def test_without_its_process_the_first_step_says_what_to_add(tmp_path: Path) -> None:
    box = boxed(tmp_path, ("pre_epoch_process: 'follow_progress'", ""))
    with pytest.raises(BadInputError, match="does not know how far the training is; add to the stage in the YAML"):
        trained(box)


def test_a_misspelt_rule_and_one_that_has_to_learn_are_refused(tmp_path: Path) -> None:
    for rule, said in (("dkdt", "did you mean"), ("ctkd", "parameters to learn, which this host would not train")):
        with pytest.raises(BadInputError, match=said):
            boxed(tmp_path, ("rule: 'universal'", f"rule: '{rule}'"))


def test_a_version_that_was_not_tested_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: "9.0")
    with pytest.warns(HostVersionWarning, match=r"torchdistill 9\.0 is installed"):
        boxed(tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_torchdistills_loss_divides_each_sample_by_its_own_temperature(rule: str) -> None:
    """The page on kits with one temperature, step by step, against KL at a temperature for each sample."""
    (code,) = blocks("one-temperature")

    def kit(progress: float, signals: Signals) -> Tensor:
        names: dict[str, Any] = {
            "student_logits": signals.student_logits,
            "teacher_logits": signals.teacher_logits,
            "labels": signals.labels,
            "progress": progress,
        }
        exec(compile(code.replace('"universal"', f'"{rule}"'), "one-temperature.md", "exec"), names)
        return names["loss"]

    def plain(method: Method, signals: Signals) -> Tensor:
        assert method.rule is not None
        found = method.rule(signals).detach()
        student = signals.student_logits / found.student[:, None]
        teacher = signals.teacher_logits / found.teacher[:, None]
        divergence = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
        return 0.1 * F.cross_entropy(signals.student_logits, signals.labels) + 0.9 * 16 * divergence

    found = own_loop(rule, loss=lambda method, signals: kit(signals.progress, signals))
    assert found == pytest.approx(own_loop(rule, loss=plain), rel=1e-5)
    assert differs(found, own_loop("fixed:4", loss=plain))


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = delicate()
    seen = modes(teacher)
    pair = networks()[0], teacher
    monkeypatch.setitem(globals(), "networks", lambda: pair)
    trained(boxed(tmp_path))
    assert seen
    assert not any(seen)
