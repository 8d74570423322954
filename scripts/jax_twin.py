"""The plain step of a stack of perceptrons in JAX, under jit and scan: the yardstick of `scripts/bench_stacks.py`.

It runs in an environment of its own, which holds JAX and not this project. It reads the weights, the data and the
batches of a run from a file, answers `ready` and the losses of every step, and then takes the same steps again for
every line that it is given, answering how many seconds of processor time they took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TEMPERATURE, CE_WEIGHT, KD_WEIGHT, MOMENTUM = 4.0, 0.1, 0.9, 0.9


def main(path: str) -> None:
    """Answer until there is no more line."""
    given = {name: jnp.asarray(value) for name, value in np.load(path, allow_pickle=False).items()}
    weights = [given[name] for name in ("weight1", "bias1", "weight2", "bias2")]
    trained = jax.jit(lambda weights: train(weights, given))
    print(json.dumps(np.asarray(trained(weights)).tolist()), flush=True)
    for _ in sys.stdin:
        since = time.process_time()
        trained(weights).block_until_ready()
        print(time.process_time() - since, flush=True)


def train(weights: list[Any], given: dict[str, Any]) -> Any:
    """The loss of every step, summed over the students; weights are `[S, ...]`, batches `[steps, S, B]`."""

    def step(state: Any, now: Any) -> Any:
        weights, speeds = state
        batch, rate = now
        images, labels, teacher = (given[name][batch] for name in ("images", "labels", "teacher"))
        loss, slopes = jax.value_and_grad(objective)(weights, images, labels, teacher)
        speeds = [MOMENTUM * speed + slope for speed, slope in zip(speeds, slopes, strict=True)]
        weights = [weight - rate * speed for weight, speed in zip(weights, speeds, strict=True)]
        return (weights, speeds), loss

    begin = weights, [jnp.zeros_like(weight) for weight in weights]
    return jax.lax.scan(step, begin, (given["batches"], given["rates"]))[1]


def objective(weights: list[Any], images: Any, labels: Any, teacher: Any) -> Any:
    """Plain distillation at T = 4 beside the labels: the mean over the batch, summed over the students."""
    weight1, bias1, weight2, bias2 = weights
    hidden = jax.nn.relu(images @ weight1.mT + bias1[:, None])
    logits = hidden @ weight2.mT + bias2[:, None]
    hard = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    log_q, log_p = (jax.nn.log_softmax(each / TEMPERATURE) for each in (logits, teacher))
    soft = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return (CE_WEIGHT * hard + KD_WEIGHT * TEMPERATURE**2 * soft).mean(-1).sum()


if __name__ == "__main__":
    main(sys.argv[1])
