"""A small causal transformer for tokens, `gpt` by name.

It runs under `torch.func.vmap`, so that many of them train as one stack.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 16


class GPT(nn.Module):
    """A decoder with learned positions and a normalisation before each sublayer, as GPT-2 has them.

    Radford et al. (2019), "Language models are unsupervised multitask learners", section 2.3. It has no dropout and no
    biases in its linear layers, and the matrix that embeds the tokens also gives the logits. Where GPT-2 draws all
    weights with a deviation of 0.02, a block begins near the identity here, whatever its width: otherwise narrow
    networks stay long at what the last token alone says.

    Args:
        num_tokens: V, the size of the vocabulary, and so the number of logits.
        length: The longest sequence, T.
        width: D, the size of a token's vector. It is shared out among heads of 16, or is one head where 16 does not
            divide it.
        layers: Blocks of attention and perceptron.
    """

    def __init__(self, num_tokens: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `[B, T]`, int64, to logits `[B, T, V]` of the token that follows each."""
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        hidden = self.norm(self.blocks(self.tokens(tokens) + self.positions(places)))
        return F.linear(hidden, self.tokens.weight)


class Block(nn.Module):
    """Causal self-attention and a perceptron, each of a normalised input and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _linear(width, 3 * width)
        self.projection = _linear(width, width, std=0.01)
        self.perceptron = nn.Sequential(_linear(width, 4 * width), nn.GELU(), _linear(4 * width, width, std=0.01))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[B, T, D]` to `[B, T, D]`."""
        hidden = hidden + self.projection(self._attend(self.attention(self.norm1(hidden))))
        shifted: Tensor = hidden + self.perceptron(self.norm2(hidden))
        return shifted

    def _attend(self, projected: Tensor) -> Tensor:
        """Mix the values `[B, T, D]` of queries, keys and values `[B, T, 3 D]`."""
        batch, length, _ = projected.shape
        query, key, value = projected.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # PyTorch's fused attention has no rule for vmap on the CPU, and is hardly faster at these sizes.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        future = torch.full(scores.shape[-2:], -math.inf, device=scores.device).triu(1)
        mixed: Tensor = (scores + future).softmax(-1) @ value
        return mixed.transpose(1, 2).flatten(-2)


def _linear(width_in: int, width_out: int, std: float | None = None) -> nn.Linear:
    """Return a layer without bias whose weights have a deviation of `1 / sqrt(width_in)`, or the given one."""
    layer = nn.Linear(width_in, width_out, bias=False)
    nn.init.normal_(layer.weight, std=width_in**-0.5 if std is None else std)
    return layer
