"""TextBrewer's distiller, unmodified, with temperatures through both of its doors, against rltemp's own loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import (
    BATCH,
    RULES,
    batches,
    blocks,
    delicate,
    differs,
    flat,
    host,
    modes,
    networks,
    own_loop,
    scalars,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rltemp import BadInputError, Method, Signals, load_method
from rltemp.integrations import HostVersionWarning
from rltemp.integrations.textbrewer import register

textbrewer = host("textbrewer")

(CODE,) = blocks("textbrewer")


class OfBatch(nn.Module):
    """A network as TextBrewer calls it, with a whole batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(images)


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> dict[str, list[float]]:
    """Run the page's block, changed in places; TextBrewer's own log of its losses, by name."""
    monkeypatch.chdir(folder)
    code = CODE
    for before, after in changes:
        assert before in code, f"{before!r} is not in the page"
        code = code.replace(before, after)
    student, teacher = (OfBatch(network) for network in networks())
    loader = DataLoader(flat(batches()), batch_size=BATCH)
    names: dict[str, Any] = {"student": student, "teacher": teacher, "loader": loader}
    exec(compile(code, "textbrewer.md", "exec"), names)
    names["distiller"].tb_writer.close()  # TextBrewer leaves its log to be written some time
    log = scalars(folder / "textbrewer_logs")
    return {tag.removeprefix("scalar/"): [value for _, value in found] for tag, found in log.items()}


def named(rule: str, more: str = "") -> tuple[str, str]:
    return 'register("universal")', f'register("{rule}"{more})'


@pytest.mark.parametrize("rule", RULES)
def test_the_page_and_rltemps_own_loop_have_the_same_losses(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trained(tmp_path, monkeypatch, named(rule))["total_loss"]
    assert found == pytest.approx(own_loop(rule, epochs=2), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2))
    assert differs(found, own_loop(rule, epochs=2, progress=lambda _: 0.0))


def by_mean_temperature(method: Method, signals: Signals) -> Tensor:
    """TextBrewer's cross-entropy of softened outputs at one temperature for both networks, and the labels'."""
    assert method.rule is not None
    found = method.rule(signals).detach()
    one = (found.student * found.teacher).sqrt().unsqueeze(-1)
    targets = (signals.teacher_logits / one).softmax(-1)
    soft = -(targets * (signals.student_logits / one).log_softmax(-1)).sum(-1).mean()
    return method.kd_weight * soft + method.ce_weight * F.cross_entropy(signals.student_logits, signals.labels)


@pytest.mark.parametrize("rule", RULES)
def test_its_own_loss_gets_one_temperature_a_sample_and_no_weight(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trained(tmp_path, monkeypatch, named(rule, ', loss="ce"'))["total_loss"]
    assert found == pytest.approx(own_loop(rule, epochs=2, loss=by_mean_temperature), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2, loss=by_mean_temperature))
    assert differs(found, own_loop(rule, epochs=2))


def test_one_temperature_through_its_loss_is_textbrewers_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trained(tmp_path, monkeypatch, named("fixed:4", ', loss="ce"'))
    constant = "temperature=4, kd_loss_weight=0.9, hard_label_weight=0.1"
    (tmp_path / "own").mkdir()
    own = trained(tmp_path / "own", monkeypatch, ('**register("universal")', constant))
    assert ours == own


def test_progress_counts_optimizer_steps_under_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulated = ("training = TrainingConfig(", "training = TrainingConfig(gradient_accumulation_steps=4, ")
    found = trained(tmp_path, monkeypatch, accumulated)
    assert found["total_loss"] == pytest.approx(own_loop("universal", epochs=2, accumulate=4), rel=1e-5)


def test_a_second_run_begins_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = CODE.splitlines()[-1].strip()
    twice = (last, f"{last}\n    {last}")
    student, _ = networks()
    wanted = [loss for _ in range(2) for loss in own_loop("universal", epochs=2, start=student)]
    found = trained(tmp_path, monkeypatch, twice)["total_loss"]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_tokens_are_those_that_textbrewers_mask_leaves() -> None:
    options = register("universal", name="masked")
    config = textbrewer.DistillationConfig(**options)
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 3, 5, 7, generator=generator)
    mask = torch.rand(3, 5, generator=generator) > 0.4
    distiller = textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(device="cpu"), config, nn.Identity(), nn.Identity(), dict, dict
    )
    seen = {"logits": [student], "logits_mask": [mask]}, {"logits": [teacher], "logits_mask": [mask]}
    total, _ = distiller.compute_loss(*seen)
    method = replace(load_method("universal"), ce_weight=0.0)
    assert total.item() == pytest.approx(
        method.loss(Signals(student[mask], teacher[mask], progress=0.0)).mean().item(), rel=1e-5
    )


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(BadInputError, match="loss must be one of ce, mse, or None"):
        register("dtkd", loss="kl")
    with pytest.raises(BadInputError, match="two phases, and this host adds two losses"):
        register("annealing")
    with pytest.raises(BadInputError, match="parameters to learn"):
        register("ctkd")


def test_a_version_that_was_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: "0.1.9")
    with pytest.warns(HostVersionWarning, match=r"textbrewer 0\.1\.9 is installed"):
        register("dtkd")


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = delicate()
    seen = modes(teacher)
    pair = networks()[0], teacher
    monkeypatch.setitem(globals(), "networks", lambda: pair)
    trained(tmp_path, monkeypatch)
    assert seen
    assert not any(seen)
