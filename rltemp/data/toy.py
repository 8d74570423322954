"""A task whose best temperature is known for every sample: its teacher is over-confident by a known factor.

An input holds six normal coordinates x and a seventh, c, that is -1, 0 or 1. The true posterior is
softmax(x W), and labels are drawn from it. The teacher's logits are s x W with s = 2^(c + 1): 1, 2 or 4 times
too sharp. To divide them by s restores the posterior exactly; so the best ratio of teacher to student
temperature is s, and one temperature for all samples falls short of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rltemp.data.dataset import Split
from rltemp.models.random_numbers import random_stream

NUM_CLASSES = 4
_COORDINATES = 6


def toy_parts(split_seed: int, sizes: tuple[int, ...]) -> list[Split]:
    """Draw splits of the given sizes: images float32 `[N, 7, 1, 1]`, and labels."""
    generator = random_stream(split_seed, "toy samples")
    return [_draw(size, generator) for size in sizes]


def toy_best_ratio(images: Tensor) -> Tensor:
    """Return T_t / T_s at which the teacher's softened output is the true posterior: 1, 2 or 4.

    Args:
        images: `[..., 7, 1, 1]`.

    Returns:
        `[...]`.
    """
    return 2.0 ** (images[..., _COORDINATES, 0, 0] + 1)


def toy_posterior_logits(images: Tensor) -> Tensor:
    """Return x W, the logits of the true class posterior: `[..., 4]` for images `[..., 7, 1, 1]`."""
    return images[..., :_COORDINATES, 0, 0] @ _mixing().to(images.device)


def toy_teacher() -> nn.Module:
    """Return the over-confident teacher; it has nothing to train."""
    return _Teacher()


class _Teacher(nn.Module):
    """Maps images `[..., 7, 1, 1]` to logits `[..., 4]`."""

    mixing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", _mixing())

    def forward(self, images: Tensor) -> Tensor:
        return toy_best_ratio(images)[..., None] * (images[..., :_COORDINATES, 0, 0] @ self.mixing)


def _mixing() -> Tensor:
    """W `[6, 4]`, standard normal, the same for every split, so that one teacher serves all."""
    return torch.randn(_COORDINATES, NUM_CLASSES, generator=random_stream(0, "toy posterior"))


def _draw(size: int, generator: torch.Generator) -> Split:
    coordinates = torch.randn(size, _COORDINATES, generator=generator)
    # As many of each in any stretch of samples; the coordinates are independent of the order.
    confidence = (torch.arange(size) % 3 - 1).float()
    images = torch.cat([coordinates, confidence[:, None]], 1)[:, :, None, None]
    posterior = toy_posterior_logits(images).softmax(-1)
    return Split(images, torch.multinomial(posterior, 1, generator=generator)[:, 0])
