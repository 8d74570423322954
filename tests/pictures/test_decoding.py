"""A picture file is read with the values that it holds, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from rltemp.errors import BadInputError
from rltemp.pictures.decoding import decoded

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)


def read(path: Path) -> np.ndarray[Any, Any]:
    image = decoded(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS.astype(np.uint16) * 257).save(tmp_path / f"deep{suffix}")
    assert (read(tmp_path / f"deep{suffix}") == PIXELS[..., None]).all()


@pytest.mark.parametrize(("kind", "said"), [(np.int32, "32-bit integers"), (np.float32, "floats")])
def test_numbers_without_a_known_range_are_refused(tmp_path: Path, kind: type, said: str) -> None:
    Image.fromarray(PIXELS.astype(kind)).save(tmp_path / "wide.tif")
    with pytest.raises(BadInputError, match=f"wide.tif: it holds {said} .*save it with 8 or 16 bits"):
        decoded(str(tmp_path / "wide.tif"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path, orientation: int, deep: bool, suffix: str) -> None:
    image = Image.fromarray(PIXELS.astype(np.uint16) * 257 if deep else PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"turned{suffix}", exif=exif)
    quarters = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert (read(tmp_path / f"turned{suffix}")[..., 0] == np.rot90(PIXELS, quarters)).all()


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".webp", ".avif"])
def test_further_kinds_of_files_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    kind = "JPEG" if suffix == ".jfif" else None
    Image.new("RGB", (9, 8), (200, 30, 60)).save(tmp_path / f"red{suffix}", format=kind)
    assert read(tmp_path / f"red{suffix}").shape == (8, 9, 3)
    assert abs(read(tmp_path / f"red{suffix}").astype(int) - (200, 30, 60)).max() < 12


def test_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    assert (read(tmp_path / "two.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1)])
def test_a_picture_of_one_pixel_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "dot.png")
    with pytest.raises(BadInputError, match=rf"dot.png: it has {size[0]} x {size[1]} pixels; needed: 2 x 2"):
        decoded(str(tmp_path / "dot.png"))


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_by_its_content_is_refused_with_what_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(BadInputError, match=r"odd\.png: its content is none of BMP, JPEG, PNG, .*Replace or remove it"):
        decoded(str(tmp_path / "odd.png"))
