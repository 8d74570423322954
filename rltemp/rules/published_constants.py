"""What papers tune for each pair of networks, `teacher-student`, on CIFAR-100 (ImageNet where the name says so).

Numbers as published or as in the authors' configurations; see the rules for the sources.
"""

from __future__ import annotations

from collections.abc import Mapping

Pairs = Mapping[str, Mapping[str, float]]


def _table(names: tuple[str, ...], *rows: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """One dictionary a pair from rows of values; `names` are the options."""
    return {pair: dict(zip(names, values, strict=True)) for pair, values in zip(_PAIRS, rows, strict=True)}


_PAIRS = (
    "wrn40_2-wrn16_2",
    "wrn40_2-wrn40_1",
    "resnet56-resnet20",
    "resnet110-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "vgg13-vgg8",
    "vgg13-mobilenetv2",
    "resnet50-mobilenetv2",
    "resnet50-vgg8",
    "resnet32x4-shufflenetv1",
    "resnet32x4-shufflenetv2",
    "wrn40_2-shufflenetv1",
)

_GAMMA = (0.1, 0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.2, 0.1, 0.2, 0.4, 0.3)
_TTM_BETA = (101.0, 76.0, 7.0, 8.0, 33.0, 100.0, 45.0, 16.0, 20.0, 70.0, 12.0, 40.0, 8.0)
_WTTM_BETA = (4.0, 3.0, 1.5, 2.0, 1.5, 3.0, 2.25, 3.0, 5.0, 2.0, 1.4, 16.0, 3.0)
_NAMES = ("ce_weight", "gamma", "kd_weight")

TTM: Pairs = _table(_NAMES, *((1.0, gamma, beta) for gamma, beta in zip(_GAMMA, _TTM_BETA, strict=True)))
"""Zheng and Yang (2024), tables 8 and 9."""

WTTM: Pairs = {
    **_table(_NAMES, *((1.0, gamma, beta) for gamma, beta in zip(_GAMMA, _WTTM_BETA, strict=True))),
    "imagenet-resnet34-resnet18": {"ce_weight": 1.0, "gamma": 0.8, "kd_weight": 1.6},
    "imagenet-resnet50-mobilenetv1": {"ce_weight": 1.0, "gamma": 0.7, "kd_weight": 3.5},
}
"""Zheng and Yang (2024), tables 8 to 10."""

DTKD_DEFAULT: Mapping[str, float] = {"ce_weight": 1.0, "kd_weight": 3.0, "plain_kd_weight": 1.0, "warmup": 20 / 240}

DTKD: Pairs = {
    pair: {"kd_weight": alpha, "plain_kd_weight": beta}
    for alpha, beta, names in (
        (3.0, 1.0, "resnet32x4-resnet8x4 vgg13-vgg8 vgg13-mobilenetv2 wrn40_2-wrn16_2"),
        (3.0, 1.0, "resnet32x4-shufflenetv1 resnet32x4-shufflenetv2"),
        (1.0, 0.5, "resnet56-resnet20 resnet110-resnet32 wrn40_2-wrn40_1"),
        (2.0, 0.5, "wrn40_2-shufflenetv1"),
        (3.0, 2.0, "resnet50-mobilenetv2"),
    )
    for pair in names.split()
}
"""The configurations beside Wei and Bai (2024): alpha and beta."""

DKD: Pairs = {
    pair: {"non_target": beta}
    for beta, names in (
        (2.0, "resnet56-resnet20 resnet110-resnet32"),
        (6.0, "vgg13-vgg8 vgg13-mobilenetv2 wrn40_2-wrn16_2 wrn40_2-wrn40_1"),
        (8.0, "resnet32x4-resnet8x4 resnet32x4-shufflenetv1 resnet32x4-shufflenetv2 resnet50-mobilenetv2"),
        (0.5, "imagenet-resnet34-resnet18"),
        (2.0, "imagenet-resnet50-mobilenetv1"),
    )
    for pair in names.split()
}
"""The configurations beside Zhao et al. (2022): beta."""
