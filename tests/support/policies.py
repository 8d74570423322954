"""Policy files for tests, of random weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.policy.features import DEFAULT_FEATURES, FEATURES
from rltemp.policy.manifest import PolicyAction, PolicyFeature
from rltemp.policy.policy_file import write_policy


def random_policy(
    path: Path,
    *hidden: int,
    reference: str = "fixed:4",
    activation: str = "tanh",
    features: tuple[str, ...] = DEFAULT_FEATURES,
    seed: int = 0,
    gain: float = 1.0,
    **action: Any,
) -> Path:
    """Write a policy file.

    Args:
        path: Where.
        *hidden: Widths of its hidden layers.
        reference: The method that it moves around.
        activation: Between layers.
        features: Their names.
        seed: Of the weights.
        gain: Of the weights; a large one drives actions out of [-1, 1].
        **action: Fields of `PolicyAction`.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = PolicyAction(**{"ratio": 4.0, "minimum": 0.5, "maximum": 20.0, **action})
    weights = {}
    for index, (inputs, outputs) in enumerate(pairwise((len(features), *hidden, scale.size))):
        weights[f"{index}.weight"] = gain * torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        weights[f"{index}.bias"] = gain * torch.randn(outputs, generator=generator) / 4
    return _write(path, weights, [_feature(name, 0.7) for name in features], scale, reference, activation)


def sloped_policy(path: Path, slope: float) -> Path:
    """A policy whose student's temperature moves with the loss by this slope."""
    weights = {"0.weight": torch.tensor([[slope], [0.0]]), "0.bias": torch.zeros(2)}
    return _write(path, weights, [_feature("student_loss", 2.0)], PolicyAction(ratio=2.0, minimum=0.5, maximum=20.0))


def _feature(name: str, std: float) -> PolicyFeature:
    return PolicyFeature(name=name, version=FEATURES[name].version, unit=FEATURES[name].unit, mean=0.1, std=std)


def _write(
    path: Path,
    weights: dict[str, Tensor],
    features: list[PolicyFeature],
    action: PolicyAction,
    reference: str = "fixed:4",
    activation: str = "tanh",
) -> Path:
    content = {"weights": weights, "features": features, "action": action, "reference": reference}
    write_policy(path, **content, activation=activation, created_with={"rltemp": "test"})
    return path
