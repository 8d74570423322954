"""What the same numbers depend on beside a configuration: the machine's conditions, and the global generators."""

from __future__ import annotations

import platform
import random
from typing import Any

import numpy as np
import torch

from rltemp.io.versions import versions


def conditions() -> dict[str, str]:
    """What the same numbers depend on beside the configuration, by name."""
    found = versions()
    wanted = ("python", "torch", "numpy", "stable-baselines3", "rltemp")
    return {name: found[name] for name in wanted if name in found} | {
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
    }


def random_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch."""
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # SB3 draws from it
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [keys.tolist(), *rest],  # type: ignore[union-attr]  # the legacy form is a tuple
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global generators back where `random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), *rest))  # noqa: NPY002  # SB3 draws from it
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
