"""Policy files of every kind, with weights drawn at random."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rltemp.features import FEATURES
from rltemp.manifest import PolicyAction, PolicyFeature
from rltemp.policy_file import write_policy

NAMES = ("progress", "student_margin", "teacher_spread", "student_loss")


def random_policy(
    path: Path,
    *,
    seed: int = 0,
    names: tuple[str, ...] = NAMES,
    reference: str = "fixed:4",
    scale: float = 1.0,
    **action: Any,
) -> Path:
    """Write a policy of two layers.

    Args:
        path: The file.
        seed: Of its weights.
        names: Its features.
        reference: The method that it moves around.
        scale: Of its weights: how far it moves.
        **action: As `PolicyAction` has it.
    """
    known = PolicyAction(**{"ratio": 4.0, "minimum": 0.5, "maximum": 20.0, **action})
    generator = torch.Generator().manual_seed(seed)
    widths = (len(names), 6, known.size)
    weights = {}
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        weights[f"{index}.weight"] = scale * torch.randn(outputs, inputs, generator=generator)
        weights[f"{index}.bias"] = scale * 0.1 * torch.randn(outputs, generator=generator)
    features = [
        PolicyFeature(name=name, version=FEATURES[name].version, unit=FEATURES[name].unit, mean=0.1, std=1.5)
        for name in names
    ]
    write_policy(
        path,
        weights=weights,
        activation="tanh",
        features=features,
        action=known,
        reference=reference,
        created_with={"rltemp": "test"},
    )
    return path
