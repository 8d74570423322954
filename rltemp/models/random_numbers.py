"""Random numbers that depend on a seed, a purpose and a counter alone, whoever draws them and whenever."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from rltemp.errors import BadInputError


def random_stream(seed: int, purpose: str, counter: int = 0) -> torch.Generator:
    """Return a CPU generator of its own for each (seed, purpose, counter).

    Raises:
        BadInputError: Where `seed` is negative.
    """
    if seed < 0:
        raise BadInputError(f"seeds must be 0 or more; got {seed}")
    key = (*purpose.encode(), counter)
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, weights are drawn on the CPU from a seed alone; the global generators then go on as they were."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _others_seeded(seed):
        # torch.manual_seed would seed the accelerators as well, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def drawing_from(stream: torch.Generator, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, all global generators draw from a stream: dropout, augmentation. Afterwards they go on as they were.

    Args:
        stream: Its first number seeds them; drawing it moves the stream on.
        device: Whose generator draws for the networks; the other devices' are left alone.
    """
    seed = int(torch.randint(2**62, (), generator=stream))
    generators = [torch.default_generator]
    if (place := torch.device(device)).type == "cuda":
        current = torch.cuda.current_device() if place.index is None else place.index
        generators.append(torch.cuda.default_generators[current])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        with _others_seeded(seed):
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def drawing_as(
    seeds: int | Sequence[int], step: int, device: torch.device | str
) -> Iterator[tuple[Sequence[torch.Generator], ...]]:
    """Within, what a student draws comes from its seed and the step; several are called with a stream for each."""
    if isinstance(seeds, int):
        with drawing_from(random_stream(seeds, "student", step), device):
            yield ()
    else:
        yield ([random_stream(seed, "student", step) for seed in seeds],)


@contextmanager
def _others_seeded(seed: int) -> Iterator[None]:
    """Within, the generators of Python and NumPy are seeded: data sets and networks may draw from them."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def generator_states() -> list[bytes]:
    """What the global generators would draw next: equal before and after code that draws nothing."""
    of_torch = torch.default_generator.get_state().numpy().tobytes()
    of_cuda = [torch.cuda.get_rng_state().numpy().tobytes()] if torch.cuda.is_available() else []
    others = repr((np.random.get_state(), random.getstate()))  # noqa: NPY002
    return [of_torch, *of_cuda, others.encode()]
