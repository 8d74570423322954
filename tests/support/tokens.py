"""A task of tokens for tests: chains of a random walk, of unlike lengths, with padding behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.training.preparation import prepare

VOCABULARY, LENGTH = 12, 8


class Walker(nn.Module):
    """Guesses the next token from the last one; of padding it says what no number is."""

    def __init__(self, width: int, seed: int, padding: float = torch.nan) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(VOCABULARY + 1, width, generator=generator))
        self.outer = nn.Parameter(torch.randn(width, VOCABULARY, generator=generator) / width**0.5)
        self.padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, T]` to `[B, T, V]`."""
        return (self.inner[tokens] @ self.outer).masked_fill((tokens == VOCABULARY).unsqueeze(-1), self.padding)


def chains(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens `[N, T]`, padding at the end, and the next of each, -100 where there is none."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.softmax(2 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)), -1)
    tokens = torch.randint(0, VOCABULARY, (count, 1), generator=generator)
    for _ in range(LENGTH):
        following = torch.multinomial(steps[tokens[:, -1]], 1, generator=generator)
        tokens = torch.cat([tokens, following], 1)
    out = torch.arange(LENGTH) >= torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    return tokens[:, :-1].masked_fill(out, VOCABULARY), tokens[:, 1:].masked_fill(out, -100)


def teacher() -> nn.Module:
    """A network that has learned the walk."""
    tokens, labels = chains(400, 1)
    made = Walker(16, seed=99)
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(150):
        kept = labels >= 0
        loss = nn.functional.cross_entropy(made(tokens)[kept], labels[kept])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return made


def token_task(padding: float = torch.nan, **options: Any) -> Task:
    """Small students of the walk; what they say of padding is `padding`."""
    given: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 0.5, "name": "walk"}
    given |= {"student": lambda seed: Walker(4, seed, padding), "teacher": teacher()}
    given |= {"train": chains(240, 1), "test": chains(80, 2)}
    return Task.of(**given | options)


def token_problem(padding: float = torch.nan, **options: Any) -> Problem:
    """The same, loaded."""
    return prepare(token_task(padding, **options))
