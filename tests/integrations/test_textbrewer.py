"""TextBrewer's distiller, unmodified, with temperatures, against rltemp's own loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.hosts import blocks, host, networks, own_loop
from support.kits import textbrewer_page
from torch import nn

from rltemp import BadInputError, Signals, load_method
from rltemp.integrations.textbrewer import register

textbrewer = host("textbrewer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where TextBrewer writes its log."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    with pytest.raises(BadInputError, match="two phases, and this host adds two losses"):
        register("annealing")
