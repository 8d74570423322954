"""What a trial finds out about a network before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.own_tasks import Double
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.models.networks import seeded_model
from rltemp.models.seeded_network import SeededNetwork
from rltemp.models.trial import Traits, tried

ROWS = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """A linear layer, and a function of its answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(6, 3), answer

    def forward(self, rows: Tensor) -> Any:
        return self.answer(self.layer(rows))


class Counting(nn.Module):
    """Counts its calls in place, in a number that is no buffer of a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), torch.zeros(3)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.layer(rows)
        self.calls += logits.detach().sum(0)
        return logits


def trial(make: Any, inputs: Any = ROWS) -> Traits:
    return tried(SeededNetwork(make, "net"), inputs, "net")


@pytest.mark.parametrize("spec", ["mlp:4", "linear", "cnn:4x8"])
def test_a_network_with_a_name_stacks(spec: str) -> None:
    found = tried(lambda seed: seeded_model(spec, (1, 8, 8), 5, seed), PICTURES, spec)
    assert (found.outputs, found.draws, found.alone) == ((5,), False, "")


def test_batch_norm_stacks() -> None:
    assert trial(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))).alone == ""


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.RReLU(), nn.GELU()])
def test_what_draws_in_training_is_seen_by_its_drawing(layer: nn.Module) -> None:
    found = trial(lambda: nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3)))
    draws = not isinstance(layer, nn.GELU)
    assert found.draws == draws
    assert found.alone == ("it draws random numbers in training, as dropout does" if draws else "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Of(Double.apply),
        Counting,
        lambda: Of(lambda logits: logits if logits.detach().sum().item() > 1e9 else logits + 1),
        lambda: Of(lambda logits: logits * logits[logits > 0].numel()),
    ],
    ids=["own function", "in place", "value decides", "shape depends on values"],
)
def test_what_vmap_refuses_is_said_in_one_line(make: Any) -> None:
    found = trial(make)
    assert found.alone.startswith("torch.func.vmap refuses it (")
    assert "\n" not in found.alone
    assert len(found.alone) < 200
    assert not found.draws


def test_what_vmap_refuses_in_eval_mode_alone_is_not_stacked() -> None:
    class Choosing(Of):
        def forward(self, rows: Tensor) -> Any:
            return super().forward(rows if self.training else rows[rows[:, 0] > -100])

    assert "vmap refuses it" in trial(lambda: Choosing(lambda logits: logits)).alone


def test_what_answers_otherwise_in_a_stack_is_not_stacked() -> None:
    class Warming(Of):
        """Its answers grow with its calls, which a number of Python's counts."""

        calls = 0

        def forward(self, rows: Tensor) -> Any:
            self.calls += 1
            return super().forward(rows) * self.calls

    assert trial(lambda: Warming(lambda logits: logits)).alone == "stacked it answers otherwise than alone"


def test_the_answer_may_be_of_tokens_or_an_object_with_logits() -> None:
    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    assert trial(lambda: Of(Answer)).outputs == (3,)
    assert not trial(lambda: Of(Answer)).alone
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    assert trial(tokens, torch.zeros(2, 5, dtype=torch.long)).outputs == (5, 9)


def test_what_it_says_of_padding_need_be_no_number() -> None:
    padded = trial(lambda: Of(lambda logits: torch.where(torch.tensor([True, False, False]), torch.nan, logits)))
    assert not padded.alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Of(lambda logits: [logits]),
            "net: a network must answer with logits [B, ..., C], a tensor; got a list",
        ),
        (lambda: Of(lambda logits: logits[:, 0]), "net must answer with logits [B, ..., C] of 2 classes or more"),
        (lambda: Of(lambda logits: logits[:, :1]), "of 2 samples it makes (2, 1), torch.float32"),
        (lambda: Of(lambda logits: logits[:1]), "of 2 samples it makes (1, 3), torch.float32"),
        (lambda: Of(lambda logits: logits.argmax(-1, keepdim=True).expand(2, 3)), "it makes (2, 3), torch.int64"),
        (lambda: nn.Linear(7, 3), "net cannot take the task's inputs (RuntimeError: "),
        (lambda: Of(lambda logits: logits.missing), "net cannot take the task's inputs (AttributeError: "),
        (nn.Flatten, "net has no parameters to train"),
        (lambda: nn.Linear(6, 3).requires_grad_(False), "net has no parameters to train"),
    ],
)
def test_what_answers_no_logits_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        trial(make)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_returns_one_object_again_and_again_is_refused() -> None:
    only = nn.Linear(6, 3)
    with pytest.raises(BadInputError, match="net returns the same network for every seed; return a new one"):
        trial(lambda: only)
    assert not trial(only).alone  # the network itself is copied for each student


def test_a_trial_moves_no_global_generator_and_trains_nothing() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    trial(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
