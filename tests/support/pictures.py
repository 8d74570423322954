"""Folders of random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(
    root: Path, counts: dict[str, dict[str, int]], size: tuple[int, int] = (9, 8), mode: str = "RGB"
) -> Path:
    """Write `counts[part][class]` images, width x height, each with values of its own."""
    generator = np.random.default_rng(0)
    for part, classes in counts.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{number:03d}.png")
    return root
