"""What a network sees of a picture: its size, and changes that depend on a seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rltemp.errors import BadInputError
from rltemp.pictures.augmentation import augmented
from rltemp.pictures.settings import Pictures
from rltemp.pictures.views import changed, still


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A picture of 40 x 30 pixels, of random values."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_a_picture_is_resized_and_its_middle_is_cut_out(picture: str) -> None:
    assert still(picture, Pictures()).shape == (3, 30, 40)
    assert torch.equal(still(picture, Pictures(image_size=30)), still(picture, Pictures())[:, :, 5:35])
    assert torch.equal(still(picture, Pictures(image_size=20, resize=30)), still(picture, Pictures())[:, 5:25, 10:30])
    assert still(picture, Pictures(image_size=64)).shape == (3, 64, 64)


def test_a_narrow_picture_does_not_fill_the_memory(tmp_path: Path) -> None:
    Image.new("RGB", (2, 4000)).save(tmp_path / "narrow.png")
    with pytest.raises(BadInputError, match=r"narrow\.png to 256 pixels: it claims 256 x 512,000 pixels"):
        still(str(tmp_path / "narrow.png"), Pictures(image_size=224, resize=256))


@pytest.mark.parametrize("parts", ["mirror", "crop", "crop+mirror", "shift", "randaugment", "shift+mirror+randaugment"])
def test_changes_depend_on_the_seed_alone(picture: str, parts: str) -> None:
    pictures = Pictures(image_size=24, augment=parts)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views = [changed(picture, pictures, seed) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(view.shape == (3, 24, 24) and view.dtype == torch.uint8 for view in views)
    assert all(torch.equal(view, changed(picture, pictures, seed)) for seed, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) >= 2


def test_nothing_is_changed_where_nothing_is_asked_for(picture: str) -> None:
    for seed in range(4):
        assert torch.equal(changed(picture, Pictures(augment="none"), seed), still(picture, Pictures()))


def test_mirroring_alone_gives_the_picture_or_its_mirror(picture: str) -> None:
    whole = still(picture, Pictures())
    views = [changed(picture, Pictures(augment="mirror"), seed) for seed in range(12)]
    mirrored = [torch.equal(view, whole.flip(-1)) for view in views]
    assert all(one or torch.equal(view, whole) for one, view in zip(mirrored, views, strict=True))
    assert 0 < sum(mirrored) < 12


def test_a_batch_in_memory_is_shifted_by_an_eighth_at_most() -> None:
    images = torch.randint(1, 256, (64, 3, 14, 20), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    zeros = (augmented(images, generator, ("shift",)) == 0).all(1)
    assert zeros.any()
    assert not zeros[:, 1:-1, 1:-1].any(), "a picture of 14 pixels is shifted by one"
    assert torch.equal(augmented(images, generator, ()), images)
    mirrored = augmented(images, generator, ("mirror",))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, images, strict=True))
    assert augmented(images, generator, ("randaugment",)).shape == images.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 5000}, "image_size must be 1 to 4096; got 5000"),
        ({"resize": 64}, "resize 64 needs an image_size of at most as much"),
        ({"image_size": 32, "resize": 16}, "resize 16 needs an image_size"),
        ({"augment": "miror"}, "unknown augmentation 'miror': did you mean 'mirror'"),
        ({"augment": "none+mirror"}, "none, or different parts"),
        ({"augment": "crop"}, "crop needs an image_size"),
        ({"augment": "crop+shift", "image_size": 8}, "and no shift"),
        ({"normalise": "0.5,0.5"}, "normalise is data, teacher, imagenet"),
        ({"normalise": "0.5/0"}, "normalise is"),
        ({"normalise": "nan/1"}, "normalise is"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        Pictures(**options)  # type: ignore[arg-type]  # of several kinds
    assert "\n" not in str(caught.value)
