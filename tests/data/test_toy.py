"""The toy's best temperatures are what it says they are."""

from __future__ import annotations

import torch
from torch.func import vmap

from rltemp.data.sources import load_dataset
from rltemp.data.toy import toy_best_ratio, toy_posterior_logits, toy_teacher


def test_the_teacher_is_too_sharp_by_one_two_or_four() -> None:
    images = torch.zeros(3, 7, 1, 1)
    images[:, 0] = 1.0
    images[:, 6, 0, 0] = torch.tensor([-1.0, 0.0, 1.0])
    assert toy_best_ratio(images).tolist() == [1.0, 2.0, 4.0]
    logits = toy_teacher()(images)
    torch.testing.assert_close(logits[1], 2 * logits[0])
    torch.testing.assert_close(logits[2], 4 * logits[0])


def test_dividing_by_the_best_ratio_restores_the_posterior_exactly() -> None:
    images = load_dataset("toy").train.inputs
    restored = toy_teacher()(images) / toy_best_ratio(images)[:, None]
    assert torch.equal(restored, toy_posterior_logits(images))


def test_the_best_ratio_fits_the_labels_better_than_any_one_temperature() -> None:
    test = load_dataset("toy").test
    logits = toy_teacher()(test.inputs)

    def loss(ratio: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(logits / ratio, test.labels).item()

    best = loss(toy_best_ratio(test.inputs)[:, None])
    fixed = min(loss(torch.tensor(2.0**power)) for power in torch.linspace(-1, 4, 51).tolist())
    assert best < fixed - 0.02


def test_labels_follow_the_posterior() -> None:
    test = load_dataset("toy").test
    posterior = toy_posterior_logits(test.inputs).softmax(-1)
    top, guess = posterior.max(-1)
    hits = (guess == test.labels).float()
    # 2,000 draws: three standard errors of an accuracy are at most 0.034.
    assert abs(hits.mean() - top.mean()) < 0.034
    assert torch.allclose(test.labels.bincount() / 2000, posterior.mean(0), atol=0.034)


def test_parts_have_the_documented_form() -> None:
    data = load_dataset("toy")
    sizes = [len(part) for part in (data.train, data.probe, data.validation, data.test)]
    assert sizes == [1000, 500, 500, 2000]
    assert (data.image_shape, data.num_classes, data.augment) == ((7, 1, 1), 4, False)
    assert torch.equal(data.normalise(data.train.inputs), data.train.inputs)
    values, counts = data.train.inputs[:, 6, 0, 0].unique(return_counts=True)
    assert values.tolist() == [-1.0, 0.0, 1.0]
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(data.probe.inputs, data.validation.inputs)


def test_the_teacher_takes_stacks_and_runs_under_vmap() -> None:
    images = load_dataset("toy").train.inputs[:12]
    teacher = toy_teacher()
    stacked = teacher(images.view(3, 4, 7, 1, 1))
    assert torch.allclose(stacked.view(12, 4), teacher(images), atol=1e-6)
    assert torch.allclose(vmap(teacher)(images.view(3, 4, 7, 1, 1)), stacked, atol=1e-6)
    assert list(teacher.parameters()) == []
