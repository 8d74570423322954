"""A Ray cluster on this machine, for tests that lose a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster: a head that works on nothing, and two nodes of one processor."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 1024 * 1024}
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def lose(nodes: Any) -> None:
    """Kill a node that works, with all that runs on it."""
    (node, *_) = list(nodes.worker_nodes)
    nodes.remove_node(node, allow_graceful=False)
