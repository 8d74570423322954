"""A Ray cluster of two nodes on this machine has the cells of a folder, and loses a node."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support import crew_work
from support.crew_work import jobs, lines
from support.processes import code, until
from support.results import COMPARE, contents

from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.experiments.crews import RETRIES, share
from rltemp.experiments.result_cache import ResultCache

pytestmark = pytest.mark.faults


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that works on nothing, and two nodes of one processor."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rltemp[ray]'")
    from ray.cluster_utils import Cluster

    # Ray's processes find what the tests' own process finds.
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_DISABLE_DASHBOARD", "1")
    memory = {"object_store_memory": 100 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def lose(nodes: Any) -> None:
    """Kill a node that works, with all that runs on it."""
    (node, *_) = list(nodes.worker_nodes)
    nodes.remove_node(node, allow_graceful=False)


def test_a_lost_nodes_cells_are_done_by_another_and_every_cell_once(nodes: Any, tmp_path: Path):
    from rltemp.experiments.cluster import Cluster

    log, cells = tmp_path / "log", ResultCache(tmp_path / "cells")
    with Cluster(nodes.address) as crew:
        Thread(target=lambda: (until(lambda: len(lines(log)) >= 40), lose(nodes))).start()
        found = share(crew, cells, jobs(log, 200), crew_work.write_slowly)
        assert found == [crew_work.cell(number) for number in range(200)]
        assert len({process for _, process in lines(log)}) >= 2
        assert len(lines(log)) <= 201, "only the cell that was lost is done again"
        assert {number for number, _ in lines(log)} == set(range(200))
        # A cell that was written in the node's last moment is found by who does it again.
        assert (cells.trained, cells.found) in ((200, 0), (199, 1))
        assert {path.suffix for path in cells.folder.iterdir()} == {".json"}

        (job,) = jobs(tmp_path / "other", 1)
        with pytest.raises(TrainingStoppedError, match="seven is none of my numbers") as error:
            share(crew, ResultCache(tmp_path / "none"), [job], crew_work.raise_always)
        assert "in raise_always" in str(error.value)
        assert len(lines(tmp_path / "other")) == RETRIES + 1
        with pytest.raises(BadInputError, match="nobody can use"):
            share(crew, ResultCache(tmp_path / "none"), jobs(tmp_path / "third", 1), crew_work.refuse)
        assert len(lines(tmp_path / "third")) == 1


def test_a_comparison_on_a_cluster_that_loses_a_node_has_the_same_bytes(nodes: Any, tmp_path: Path, capsys):
    words = (*COMPARE, "--seeds", "24", "--selection-seeds", "6", "--stack", "1")
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert code(*words, "--out", whole.with_name("run")) == 0
    out.rename(whole)
    total = len(list((whole / "cells").glob("*.json")))
    killer = Thread(
        target=lambda: (until(lambda: len(list((out / "cells").glob("*.json"))) > total // 2, 300), lose(nodes))
    )
    killer.start()
    assert code(*words, "--out", out, "--ray", nodes.address) == 0
    killer.join()
    assert contents(out) == contents(whole)
    assert not re.search(r"([2-9]|\d\d+) of \d+ cells were there", capsys.readouterr().out), "all were trained by Ray"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nowhere"])
def test_where_no_cluster_is_a_line_says_so(address: str, tmp_path: Path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rltemp[ray]'")
    since = time.monotonic()
    words = ("compare", "--task", "toy", "--epochs", "1", "--rules", "none", "--seeds", "2", "--out", tmp_path / "c")
    assert code(*words, "--ray", address) == 2
    error = capsys.readouterr().err
    assert f"--ray {address}: no Ray cluster can be reached there" in error.splitlines()[-1]
    assert time.monotonic() - since < 60
