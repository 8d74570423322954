"""The integration of sentence-transformers, against its own loss and in a run of its own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import OF_HOSTS, run_block
from support.tiny import WORDS, tokenizer
from torch import Tensor

from rltemp import BadInputError, Controller

host = pytest.importorskip("sentence_transformers")
ours = pytest.importorskip("rltemp.integrations.sentence_transformers")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

pytestmark = OF_HOSTS


def student(folder: Path) -> Any:
    """A model of one layer that reads words."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return host.SentenceTransformer(str(folder), device="cpu")


def data(count: int = 12) -> Any:
    """Queries with three candidates each, and a teacher's scores of them."""
    texts = {
        name: [f"w{(step * place) % 60} w{(7 * place + step) % 60}" for place in range(count)]
        for step, name in enumerate(("query", "positive", "negative_1", "negative_2"), 1)
    }
    scores = 3 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return pytest.importorskip("datasets").Dataset.from_dict({**texts, "label": scores.tolist()})


def embeddings() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(4)]
    return columns, 2 * torch.randn(5, 3, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_at_one_temperature_it_is_the_hosts_own_loss(temperature: float, tmp_path: Path) -> None:
    model, (columns, scores) = student(tmp_path), embeddings()
    found = ours.QueryDistillationLoss(model, f"fixed:temperature={temperature},kd_weight=1")
    wanted = losses.DistillKLDivLoss(model, temperature=temperature)
    both = [each.compute_loss_from_embeddings(columns, scores) for each in (found, wanted)]
    torch.testing.assert_close(*both)
    torch.testing.assert_close(*(torch.autograd.grad(each, columns)[0] for each in both))


def test_a_run_of_the_hosts_trainer_tells_the_rule_how_far_it_is(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[float, float]] = []
    own = Controller.kd

    def kept(self: Controller, student: Tensor, teacher: Tensor, *args: Any, **named: Any) -> Tensor:
        seen.append((named["progress"], own(self, student, teacher, *args, **named).mean().item()))
        return own(self, student, teacher, *args, **named)

    monkeypatch.setattr(Controller, "kd", kept)
    monkeypatch.chdir(tmp_path)
    trainer = run_block("sentence-transformers", student=student(tmp_path / "student"), train_dataset=data())["trainer"]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == trainer.state.max_steps == len(seen)
    assert [progress for progress, _ in seen] == [step / len(seen) for step in range(len(seen))]
    assert logged == pytest.approx([loss for _, loss in seen], abs=1e-4)


def test_what_the_controller_sets_is_refused_and_a_cards_entry_names_it(tmp_path: Path) -> None:
    model = student(tmp_path)
    with pytest.raises(BadInputError, match="leave out student_temperature, temperature"):
        ours.QueryDistillationLoss(model, temperature=2.0, student_temperature=1.0)
    with pytest.raises(BadInputError, match="student has 3 class outputs, teacher 2"):
        ours.QueryDistillationLoss(model).compute_loss_from_embeddings(embeddings()[0], torch.zeros(5, 2))
    assert ours.QueryDistillationLoss(model, "dtkd").get_config_dict() == {"controller": "dtkd"}
