"""TextBrewer's distiller, unmodified, with temperatures through both of its doors, against rltemp's own loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.hosts import RULES, blocks, differs, host, networks, own_loop
from support.kits import textbrewer_page
from torch import Tensor, nn
from torch.nn import functional as F

from rltemp import BadInputError, Method, Signals, load_method
from rltemp.integrations.textbrewer import register

textbrewer = host("textbrewer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where TextBrewer writes its log."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(rule: str, more: str = "") -> tuple[str, str]:
    return 'register("universal")', f'register("{rule}"{more})'


def by_mean_temperature(method: Method, signals: Signals) -> Tensor:
    """TextBrewer's cross-entropy of softened outputs at one temperature for both networks, and the labels'."""
    assert method.rule is not None
    found = method.rule(signals).detach()
    one = (found.student * found.teacher).sqrt().unsqueeze(-1)
    targets = (signals.teacher_logits / one).softmax(-1)
    soft = -(targets * (signals.student_logits / one).log_softmax(-1)).sum(-1).mean()
    return method.kd_weight * soft + method.ce_weight * F.cross_entropy(signals.student_logits, signals.labels)


@pytest.mark.parametrize("rule", RULES)
def test_its_own_loss_gets_one_temperature_a_sample_and_no_weight(rule: str, folder: Path) -> None:
    found = textbrewer_page(folder, named(rule, ', loss="ce"'))
    assert found == pytest.approx(own_loop(rule, epochs=2, loss=by_mean_temperature), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2, loss=by_mean_temperature))
    assert differs(found, own_loop(rule, epochs=2))


def test_one_temperature_through_its_loss_is_textbrewers_constant(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = textbrewer_page(folder, named("fixed:4", ', loss="ce"'))
    constant = "temperature=4, kd_loss_weight=0.9, hard_label_weight=0.1"
    (folder / "own").mkdir()
    monkeypatch.chdir(folder / "own")
    assert ours == textbrewer_page(folder / "own", ('**register("universal")', constant))


def test_a_second_run_begins_at_the_beginning(folder: Path) -> None:
    last = blocks("textbrewer")[0].splitlines()[-1].strip()
    student, _ = networks()
    wanted = [loss for _ in range(2) for loss in own_loop("universal", epochs=2, start=student)]
    assert textbrewer_page(folder, (last, f"{last}\n    {last}")) == pytest.approx(wanted, rel=1e-5)


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
