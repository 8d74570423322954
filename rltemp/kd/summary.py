"""Numbers that sum up the temperatures of a batch, by the tags under which they are logged."""

from __future__ import annotations

import torch

from rltemp.kd.signals import Temperatures

NETWORKS = ("teacher", "student")
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def temperature_scalars(temperatures: Temperatures) -> dict[str, float]:
    """Mean and quantiles over the batch of both networks' temperatures, and the fraction that a guard has set.

    >>> found = temperature_scalars(Temperatures(torch.ones(3), torch.tensor([1.0, 2.0, 6.0]), torch.ones(3)))
    >>> found["temperature/teacher_mean"], found["temperature/teacher_q50"]
    (3.0, 2.0)
    """
    guarded = temperatures.guarded
    found = {"temperature/guarded": 0.0 if guarded is None else float(guarded.float().mean())}
    for network in NETWORKS:
        values = getattr(temperatures, network).detach().float().flatten()
        quantiles = values.quantile(torch.tensor(list(QUANTILES.values()), device=values.device)).tolist()
        found[f"temperature/{network}_mean"] = float(values.mean())
        found |= {f"temperature/{network}_{q}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
    return found
