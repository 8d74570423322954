"""What every integration keeps in its host, unmodified: the losses of our own loop, the progress, its refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.hosts import OF_HOSTS, RULES, delicate, differs, modes, networks, own_loop
from support.kits import KITS

from rltemp import BadInputError
from rltemp.integrations import HostVersionWarning, host_versions

pytestmark = OF_HOSTS
Run = Callable[..., list[float]]


@pytest.fixture(params=sorted(KITS))
def kit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name: str = request.param
    return name


@pytest.fixture
def run(kit: str, tmp_path: Path) -> Run:
    """A run of the kit; the test is skipped where the kit is not installed."""
    return partial(KITS[kit], folder=tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_a_host_and_rltemps_own_loop_have_the_same_losses(run: Run, rule: str) -> None:
    found = run(rule)
    assert found == pytest.approx(own_loop(rule, epochs=2), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2))
    assert differs(found, own_loop(rule, epochs=2, progress=lambda _: 0.0))


def test_progress_counts_optimizer_steps_under_accumulation(run: Run) -> None:
    found = run("universal", accumulate=4)
    assert found == pytest.approx(own_loop("universal", epochs=2, accumulate=4), rel=1e-5)
    assert differs(found, own_loop("universal", epochs=2, accumulate=4, progress=lambda done: min(1.0, 4 * done)))


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode(run: Run) -> None:
    teacher = delicate()
    seen = modes(teacher)
    run("universal", pair=(networks()[0], teacher))
    assert set(seen) == {False}


def test_a_rule_that_has_to_learn_is_refused(run: Run) -> None:
    with pytest.raises(BadInputError, match="parameters to learn, which this host would not train"):
        run("ctkd")


def test_a_version_that_was_not_tested_is_named(kit: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_versions, "version", lambda host: "99.0")
    said = rf"^{kit} 99\.0 is installed; rltemp's integration was tested with {kit} >="
    with pytest.warns(HostVersionWarning, match=said):
        run("dtkd")
