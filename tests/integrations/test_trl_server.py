"""The integration of TRL's trainer with a served teacher, against the trainer itself and a client that is here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import OF_HOSTS, run_block
from support.tiny import llama, prompts, tokenizer
from support.trainers import assert_trained, logged, own_losses, settings
from torch import Tensor, nn

from rltemp import BadInputError, Method, Signals, SparseTeacher, load_method
from rltemp.integrations.trl_server import ServerDistillationTrainerMixin
from rltemp.kd.losses import kd_loss

served = pytest.importorskip("trl.experimental.server_distillation")
client = pytest.importorskip("trl.generation.vllm_client")

pytestmark = OF_HOSTS
STEPS, K = 3, 8


class Client:
    """Answers as a vLLM server does: the likeliest classes of a small model, and the sampled token."""

    def __init__(self, **_: Any) -> None:
        self.teacher = llama(1, 32).eval()

    @torch.no_grad()
    def get_sequence_logprobs(
        self, sequences: list[list[int]], prompt_lengths: list[int], top_logprobs: int, temperature: float
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"logprobs": [], "logprob_token_ids": [], "actual_logprobs": []}
        for sequence, start in zip(sequences, prompt_lengths, strict=True):
            tokens = torch.tensor([sequence])
            log_probs = self.teacher(tokens).logits[0].log_softmax(-1)[start - 1 : -1]
            top = log_probs.topk(top_logprobs, -1)
            found["logprobs"].append(top.values.tolist())
            found["logprob_token_ids"].append(top.indices.tolist())
            found["actual_logprobs"].append(log_probs.gather(-1, tokens[0, start:, None]).tolist())
        return found


class Distiller(ServerDistillationTrainerMixin, served.ServerDistillationTrainer):
    """What a user writes."""


class Recorded:
    """Keeps what the host computes its losses of."""

    seen: tuple[dict[str, Any], ...] = ()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen = (*self.seen, inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]


class RecordedDistiller(Recorded, Distiller):
    """The same, recorded."""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "VLLMClient", Client)


def distiller(folder: Path, base: type = RecordedDistiller, **more: Any) -> Any:
    own = {"controller": more.pop("controller", "fixed:1")} if issubclass(base, Distiller) else {}
    options = {"max_steps": STEPS, "bf16": False, "beta": 0.0, "loss_top_k": K, "max_completion_length": 6} | more
    config = served.ServerDistillationConfig(
        **settings(folder, **options), teacher_model_server_url="http://localhost:1"
    )
    return base(model=llama(0), args=config, train_dataset=prompts(), processing_class=tokenizer(), **own)


def signals_of(student: nn.Module, inputs: dict[str, Any], progress: float) -> Signals:
    """The buckets that the loss is of: the tokens of a completion."""
    ids, mask = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    kept = inputs["completion_mask"].bool()
    where = slice(-kept.shape[1] - 1, -1)
    ours = student(input_ids=ids, attention_mask=mask).logits[:, where]
    with torch.no_grad():
        theirs = llama(1, 32)(input_ids=ids, attention_mask=mask).logits[:, where]
    return SparseTeacher.of_logits(theirs, K, tail=False).signals(ours, inputs["completion_ids"], progress, kept)


@pytest.mark.parametrize("name", ["universal", "dtkd", "fixed:4"])
def test_a_run_has_the_losses_of_our_own_loop(name: str, tmp_path: Path) -> None:
    trainer = distiller(tmp_path, controller=name)
    trainer.train()
    method = load_method(name)
    assert isinstance(method, Method)

    def loss(seen: Signals) -> Tensor:
        return method.kd_weight * kd_loss(seen, method.rule(seen).detach())

    assert logged(trainer) == pytest.approx(own_losses(llama(0), trainer.seen, signals_of, loss), rel=1e-5)
    assert max(logged(trainer, "temperature/teacher_mean")) <= 1
    if name != "universal":  # theirs are above 1 everywhere, so that the cap is counted everywhere
        assert trainer.controller.guarded == 1
        assert logged(trainer, "temperature/guarded") == [1.0] * STEPS


@pytest.mark.parametrize(("beta", "count"), [(0.0, K), (1.0, 1), (0.5, 1)])
def test_at_temperature_1_and_weight_1_it_is_the_hosts_own_loss(beta: float, count: int, tmp_path: Path) -> None:
    one = "fixed:temperature=1,kd_weight=1"
    found = []
    for base, own in ((RecordedDistiller, {"controller": one}), (served.ServerDistillationTrainer, {})):
        torch.manual_seed(0)
        trainer = distiller(tmp_path / base.__name__, base, beta=beta, loss_top_k=count, **own)
        trainer.train()
        found.append(logged(trainer))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_sampled_token_has_a_weight_and_no_temperature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = []
    with caplog.at_level(logging.INFO, "rltemp"):
        for controller in ("fixed:temperature=1,kd_weight=1", "fixed:temperature=2,kd_weight=1"):
            trainer = distiller(tmp_path / controller[-3:], beta=1.0, loss_top_k=1, max_steps=1, controller=controller)
            trainer.train()
            found.append(logged(trainer)[0])
    assert found[1] == pytest.approx(4 * found[0], rel=1e-4)  # T^2
    assert "the sampled token alone, which has no temperature" in caplog.text


def test_the_block_of_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"student": llama(0), "tokenizer": tokenizer(), "train_dataset": prompts(8)}
    assert_trained(run_block("trl", ("loss_top_k=64", "loss_top_k=8"), number=1, **names)["trainer"])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"temperature": 2.0}, "temperature=2.0: the host asks its server"), ({"loss_add_tail": False}, "needed is True")],
)
def test_what_the_controller_cannot_heed_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=named):
        distiller(tmp_path, **change)
