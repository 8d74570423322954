"""Policy files for tests: of given weights, and of random ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.policy.features import DEFAULT_FEATURES, FEATURES
from rltemp.policy.manifest import PolicyAction, PolicyFeature
from rltemp.policy.policy_file import write_policy


def feature(name: str, mean: float = 0.0, std: float = 1.0, version: int | None = None) -> PolicyFeature:
    """A feature of ours, as a policy file names it."""
    entry = FEATURES[name]
    return PolicyFeature(name=name, version=version or entry.version, unit=entry.unit, mean=mean, std=std)


def policy_of(
    path: Path,
    weights: dict[str, Tensor],
    features: Sequence[PolicyFeature],
    reference: str = "fixed:4",
    activation: str = "tanh",
    **action: Any,
) -> Path:
    """Write a policy of these weights; `action` holds fields of `PolicyAction`."""
    write_policy(
        path,
        weights=weights,
        activation=activation,
        features=features,
        action=PolicyAction(**{"ratio": 4.0, "minimum": 0.5, "maximum": 20.0, **action}),
        reference=reference,
        created_with={"rltemp": "test"},
    )
    return path


def random_policy(
    path: Path,
    *hidden: int,
    reference: str = "fixed:4",
    activation: str = "tanh",
    features: tuple[str, ...] = DEFAULT_FEATURES,
    seed: int = 0,
    gain: float = 1.0,
    seen: tuple[float, float] | None = None,
    **action: Any,
) -> Path:
    """Write a policy of random weights with hidden layers so wide; a large gain drives actions out of [-1, 1].

    With `seen`, the range of every feature, it fades beyond.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 if action.get("weight_ratio", 1.0) > 1 else 2
    weights = {}
    for index, (inside, out) in enumerate(pairwise((len(features), *hidden, outputs))):
        weights[f"{index}.weight"] = gain * torch.randn(out, inside, generator=generator) / inside**0.5
        weights[f"{index}.bias"] = gain * torch.randn(out, generator=generator) / 4
    ranges = {} if seen is None else dict(zip(("low", "high"), seen, strict=True))
    listed = [feature(name, 0.1, 0.7).model_copy(update=ranges) for name in features]
    return policy_of(path, weights, listed, reference, activation, **action)


def sloped_policy(path: Path, slope: float) -> Path:
    """A policy whose student's temperature moves with the loss by this slope."""
    weights = {"0.weight": torch.tensor([[slope], [0.0]]), "0.bias": torch.zeros(2)}
    return policy_of(path, weights, [feature("student_loss", 0.1, 2.0)], ratio=2.0)
