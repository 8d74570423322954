"""Batches: what they hold, what is random about them, and that nothing else is."""

from __future__ import annotations

import pytest
import torch

from rltemp.data.batches import augmentation_generator, epoch_order
from rltemp.data.dataset import Dataset, Split
from rltemp.errors import BadInputError
from rltemp.pictures.augmentation import shifted_and_mirrored


def pictures(count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 10, 12)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def dataset(augmented: bool) -> Dataset:
    parts = [Split(pictures(8, seed), torch.arange(8) % 2) for seed in range(4)]
    mean, std = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([1.0, 2.0, 4.0])
    return Dataset("pictures", *parts, num_classes=2, mean=mean, std=std, augment=augmented)


def naive(image: torch.Tensor, down: int, right: int, mirror: bool) -> torch.Tensor:
    """Pad by 4, cut at (down, right), mirror: written out pixel by pixel."""
    height, width = image.shape[1:]
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = width - 1 - column if mirror else column
            y, x = row + down - 4, source + right - 4
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


def views(image: torch.Tensor) -> list[torch.Tensor]:
    """All 9 x 9 x 2 views of an image."""
    return [naive(image, d, r, mirror) for d in range(9) for r in range(9) for mirror in (False, True)]


def test_normalisation_is_worked_by_hand() -> None:
    images = torch.tensor([[[[12]], [[16]], [[38]]]], dtype=torch.uint8)
    normalised = dataset(False).normalise(images)
    assert normalised.dtype == torch.float32
    assert normalised.flatten().tolist() == [2.0, -2.0, 2.0]


def test_a_batch_gathers_an_index_of_any_shape() -> None:
    data = dataset(False)
    index = torch.tensor([[7, 0, 3], [3, 3, 1]])
    batch = data.batch(data.train, index, torch.Generator()).inputs
    assert batch.shape == (2, 3, 3, 10, 12)
    assert torch.equal(batch[1, 2], data.normalise(data.train.inputs[1]))
    assert torch.equal(data.batch(data.probe, index[0]).inputs, data.normalise(data.probe.inputs[index[0]]))


def test_augmentation_happens_only_where_the_data_and_the_caller_want_it() -> None:
    index = torch.arange(8)
    for augmented, generator in ((False, torch.Generator()), (True, None)):
        data = dataset(augmented)
        assert torch.equal(data.batch(data.train, index, generator).inputs, data.normalise(data.train.inputs))
    data = dataset(True)
    batch = data.batch(data.train, index, torch.Generator()).inputs
    assert not torch.equal(batch, data.normalise(data.train.inputs))


def test_an_augmented_batch_of_a_stack_has_its_own_view_of_every_sample() -> None:
    data = dataset(True)
    batch = data.batch(data.train, torch.zeros(2, 6, dtype=torch.int64), torch.Generator().manual_seed(0)).inputs
    assert batch.shape == (2, 6, 3, 10, 12)
    assert len({view.numpy().tobytes() for view in batch.flatten(0, 1)}) > 6


def test_every_augmented_image_is_one_of_its_shifted_and_mirrored_views() -> None:
    images = pictures(40)
    augmented = shifted_and_mirrored(images, torch.Generator().manual_seed(0), 4)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    for image, result in zip(images, augmented, strict=True):
        assert any(torch.equal(result, view) for view in views(image))


def test_every_shift_and_both_mirrorings_occur_equally_often() -> None:
    image = pictures(1, shape=(1, 10, 12))
    augmented = shifted_and_mirrored(image.expand(16_200, -1, -1, -1), torch.Generator().manual_seed(0), 4)
    names = {view.numpy().tobytes(): position for position, view in enumerate(views(image[0]))}
    counts = torch.tensor([names[result.numpy().tobytes()] for result in augmented]).bincount(minlength=162)
    # 100 expected of each: 5 standard deviations are 50.
    assert counts.min() > 50
    assert counts.max() < 150


def test_augmentation_leaves_its_input_and_repeats_with_its_generator() -> None:
    images = pictures(8)
    before = images.clone()
    first, same, other = (shifted_and_mirrored(images, augmentation_generator(1, step), 4) for step in (5, 5, 6))
    assert torch.equal(images, before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmentation_is_the_same_on_every_device() -> None:
    images = pictures(8)
    there = shifted_and_mirrored(images.cuda(), augmentation_generator(0, 0), 4).cpu()
    assert torch.equal(there, shifted_and_mirrored(images, augmentation_generator(0, 0), 4))


def test_an_epoch_visits_samples_once_and_drops_the_incomplete_batch() -> None:
    order = epoch_order(seeds=0, epoch=0, size=107, batch_size=10)
    assert order.shape == (10, 10)
    assert len(set(order.flatten().tolist())) == 100
    assert 0 <= order.min() <= order.max() < 107
    assert sorted(epoch_order(0, 0, 12, 12).flatten().tolist()) == list(range(12))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    orders = {(seed, epoch): epoch_order(seed, epoch, 100, 10) for seed in range(4) for epoch in range(4)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(order, epoch_order(*key, 100, 10)) for key, order in orders.items())
    assert len({tuple(order.flatten().tolist()) for order in orders.values()}) == 16
    # Augmentation draws from another stream.
    assert not torch.equal(epoch_order(3, 2, 100, 100)[0], torch.randperm(100, generator=augmentation_generator(3, 2)))


def test_seeds_below_zero_and_labels_of_other_images_are_refused() -> None:
    with pytest.raises(BadInputError, match="seeds must be 0 or more; got -1"):
        augmentation_generator(-1, 0)
    with pytest.raises(BadInputError, match=r"\(8, 3, 10, 12\)\] and \(7,\)"):
        Split(pictures(8), torch.zeros(7, dtype=torch.int64))


def test_a_data_set_moves_whole() -> None:
    moved = dataset(True).to("meta")
    tensors = [moved.mean, moved.std, *(t for p in (moved.train, moved.test) for t in (p.inputs, p.labels))]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.image_shape == (3, 10, 12)
    assert len(moved.train) == 8
