"""A policy that processes of runs learn together through a service gets better; and does not where it must not."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rltemp.data.problem import Problem
from rltemp.errors import BadInputError
from rltemp.experiments.statistics import Paired, paired_difference

pytest.importorskip("fastapi", reason="rltemp[serve] is not installed")

from support.processes import Process, code, curves, finish, kill_after_a_checkpoint, resumed_at, start, until
from support.raw_server import RawServer, answers, http
from support.reports import judged
from support.services import serving

import rltemp.agents.online as online
from rltemp.agents import report_client
from rltemp.agents.config import LearningOptions
from rltemp.agents.learner import Learner
from rltemp.agents.report_client import ReportClient
from rltemp.agents.reports import Report
from rltemp.cli.main import main
from rltemp.io.run_folders import read_json
from rltemp.loading import SHIPPED
from rltemp.policy.policy_file import encode_policy
from rltemp.remote import poller
from rltemp.remote.http_client import HttpClient

ONLINE = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "online.py"))
"""The experiment."""


def gain(problem: Problem, files: dict[int, Path]) -> Paired:
    """The last version's students minus the first's, in points; nobody learned from these."""
    accuracy = ONLINE["evaluate"](problem, {v: files[v] for v in (1, max(files))}, range(2000, 2064))
    return paired_difference(100 * accuracy[max(files)], 100 * accuracy[1])


def learned(tmp_path: Path, seed: int, cache: Path, run: Callable[..., Any] | None = None) -> dict[int, Path]:
    """Two processes at once, 20 runs of 16 students each, by the command line; every version's file."""

    def work(url: str, place: int) -> None:
        if run is not None:
            online.Runs.run = run  # type: ignore[method-assign]  # in that process alone
        words = ["distill", "--controller", url, "--learn", "--rule", "online", "--runs", 20, "--replicas", 16]
        main([str(word) for word in [*words, "--seed", seed + 1000 * place, "--out", tmp_path / f"process-{place}"]])

    words = ("--learn", "online", "--state", tmp_path / "state", "--learning.students-per-update", 64)
    with serving(*words) as service:
        client = HttpClient(service.url)
        running = [Process(lambda place=place: work(service.url, place), RLTEMP_CACHE=str(cache)) for place in range(2)]
        while any(process.poll() is None for process in running):
            ONLINE["keep"](client, tmp_path / "kept")
            time.sleep(0.05)
        ONLINE["keep"](client, tmp_path / "kept")
        for process in running:
            assert finish(process)[0] == 0, finish(process)
    return {int(file.stem): file for file in sorted((tmp_path / "kept").glob("*.safetensors"))}


def negated(self: online.Runs, given: online.ParameterDistribution, seed: int) -> online.RunOutcome:
    """A run that reports the opposite of what became of it."""
    outcome = RUN(self, given, seed)
    records = [record.model_copy(update={"reward": -record.reward}) for record in outcome.report.records]
    return replace(outcome, report=outcome.report.model_copy(update={"records": records}))


RUN = online.Runs.run


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("run", [None, negated], ids=["as it is", "rewards that say the opposite"])
def test_two_processes_make_the_policy_better_by_true_rewards_alone(digits, tmp_path, teacher_cache, run, seed):
    files = learned(tmp_path, seed, teacher_cache, run)
    found = gain(digits, files)
    assert max(files) >= 8
    assert (found.low > 0) is (run is None), found


def first_version(exploration: float = 0.1) -> online.ParameterDistribution:
    """Version 1 of the shipped layout around fixed:4."""
    layout = LearningOptions().layout()
    learner = Learner(layout, LearningOptions())
    same = {name: getattr(layout.manifest, name) for name in ("activation", "features", "action", "reference")}
    about = {"version": 1, "exploration": exploration, "potential": "margin"}
    data, _ = encode_policy(weights=learner.tensors(learner.mean_parameters), provenance=about, **same)
    return online.ParameterDistribution.of(data, "first")


def test_a_run_repeats_and_its_rewards_are_its_students_improvement(short: Problem) -> None:
    runs, given = online.Runs(short, 4), first_version()
    first, second = runs.run(given, 3), runs.run(given, 3)
    assert first.report == second.report
    records = first.report.records
    assert len(records) == 16
    assert len({record.run for record in records}) == 4
    assert len({record.group for record in records}) == 1
    sums = [sum(record.reward for record in records[4 * student : 4 * student + 4]) for student in range(4)]
    torch.testing.assert_close(torch.tensor(sums), first.improvement)
    mirrored = torch.tensor([records[0].action, records[4].action])
    torch.testing.assert_close(mirrored.mean(0), given.network.weights.detach())
    assert runs.run(given, 4).report != first.report
    alone = online.Runs(short, 1)
    assert alone.run(given, 3).report.records[0].group == alone.run(given, 4).report.records[0].group


def test_with_draws_of_no_width_every_student_is_the_references(short: Problem) -> None:
    outcome = online.Runs(short, 2).run(first_version(1e-9), 0)
    assert outcome.test_accuracy[0] == outcome.test_accuracy[1]
    wide = online.Runs(short, 2).run(first_version(1.0), 0)
    assert wide.improvement[0] != wide.improvement[1]


SHORT = ("distill", "--task", "digits", "--epochs", 2, "--learn", "--rule", "online", "--replicas", 8)
LEARN = ("--learn", "online", "--learning.students-per-update")


def test_runs_follow_the_versions_that_they_make(tmp_path: Path, teacher_cache: Path) -> None:
    out = tmp_path / "out"
    with serving(*LEARN, 8, "--state", tmp_path / "state") as service:
        words = (*SHORT, "--controller", service.url, "--controller-deadline", 5, "--runs", 4, "--out", out)
        returned, said, warned = finish(start(*words, cache=teacher_cache))
        assert (returned, warned) == (0, ""), said
        # The last update may come after its reports are answered.
        until(lambda: service.request("GET", "/v2/models/online/versions/5/policy")[0] == 200)
    result = read_json(out / "result.json")
    assert result["controller"]["records"] == {"accepted": 128, "known": 0, "stale": 0, "refused": 0, "dropped": 0}
    assert [row["seed"] for row in result["runs"]] == [0, 1, 2, 3]
    assert result["runs"][0]["version"] == 1
    assert result["runs"][3]["version"] > 1
    assert result["test_accuracy"] == pytest.approx(result["runs"][3]["kept_test_accuracy"])
    found = curves(out)
    assert [step for step, _ in found["online/improvement"]] == [0, 1, 2, 3]
    assert [value for _, value in found["online/version"]] == [row["version"] for row in result["runs"]]


def test_the_same_runs_count_once_and_a_killed_process_goes_on(tmp_path: Path, teacher_cache: Path) -> None:
    with serving(*LEARN, 1000, "--state", tmp_path / "state") as service:
        words = (*SHORT, "--controller", service.url, "--controller-deadline", 5, "--runs", 3, "--out")
        assert finish(start(*words, tmp_path / "a", cache=teacher_cache))[0] == 0
        killed = start(*words, tmp_path / "b", cache=teacher_cache)
        kill_after_a_checkpoint(killed, tmp_path / "b" / "checkpoints")
        returned, said, _ = finish(start(*words, tmp_path / "b", cache=teacher_cache))
        assert (returned, resumed_at(said) > 0) == (0, True)
    first, second = (read_json(tmp_path / name / "result.json") for name in "ab")
    assert first["runs"] == second["runs"]
    assert first["controller"]["records"]["accepted"] == 96
    assert second["controller"]["records"]["accepted"] == 0
    assert second["controller"]["records"]["known"] > 0


def test_a_service_that_is_away_costs_nothing_but_its_records(tmp_path: Path, teacher_cache: Path) -> None:
    words = ("distill", "--task", "digits", "--epochs", 1, "--learn", "--rule", "online", "--runs", 3, "--replicas", 2)
    out = tmp_path / "out"
    process = start(*words, "--controller", "http://127.0.0.1:9", "--out", out, cache=teacher_cache)
    returned, _, warned = finish(process)
    assert returned == 0, warned
    assert warned.count("\n") == 1
    assert "Runs go on; their reports wait" in warned
    controller = read_json(out / "result.json")["controller"]
    assert controller["fallback_runs"] == 3
    assert controller["failures"] > 0


def group(seed: int) -> Report:
    """Eight runs in two looks, all worth nothing."""
    return judged(torch.zeros(27), 1, seed, lambda drawn: drawn.sum(-1) * 0)


def test_reports_wait_for_a_service_that_is_away_and_the_oldest_go_first(monkeypatch, caplog):
    client = ReportClient(HttpClient("http://127.0.0.1:9"), "online")
    client.start(20)
    monkeypatch.setattr(report_client, "WAITING_BYTES", 3 * len(group(0).model_dump_json()))
    started = time.monotonic()
    for seed in range(6):
        client.post(group(seed))
        client.settle(20)
    assert time.monotonic() - started < 20, "nobody waits for a service that is away"
    assert 0 < client.waiting <= 48
    client.close(0.0)
    assert client.counts["dropped"] == 96
    assert len(caplog.records) == 1


def test_a_service_that_lies_is_away_and_no_version_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "LONGEST", 0.01)
    shipped = http(SHIPPED["universal"].read_bytes())  # a policy that nothing is drawn around
    for said in (http(b""), http(b"x" * 1000), shipped, http(b"{}", "500 X")):
        with RawServer(answers(said)) as server:
            client = ReportClient(HttpClient(server.url), "online")
            client.start(20)
            client.post(group(0))
            until(lambda: client.failures >= 3)  # noqa: B023
            assert client.newest is None
            client.close(0.0)
            assert client.counts["accepted"] == 0


AWAY = ("distill", "--learn", "--rule", "online", "--task", "toy", "--controller", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("distill", "--learn"), "--learn needs --controller"),
        ((*AWAY, "--log-every", 5), "leave --log-every out"),
        ((*AWAY, "--controller-mode", "features"), "leave --controller-mode features out"),
        ((*AWAY, "--strict"), "strict: no fallback"),
        (("distill", "--runs", 3), "--runs goes with --learn"),
        (("distill", "--learn", "--controller", "http://127.0.0.1:9", "--runs", 0), "--runs must be at least 1"),
        (("serve", "--learn", "mine"), "--learn needs --state"),
        (("serve", "--learn", "universal", "--state", "FOLDER"), "a policy is served under this name already"),
        (("serve", "--learn", "dtkd", "--state", "FOLDER"), "is a closed-form rule's name"),
        (("serve", "--learn", "mine", "--state", "FOLDER", "--learning.clip", 2), "clip must be above 0"),
        (("serve", "--learn", "mine", "--state", "FOLDER", "--learning.reference", "dtkt"), "did you mean 'dtkd'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    given = [out if word == "FOLDER" else word for word in words]
    status = 4 if "--strict" in words else 2
    assert code(*given, *(("--out", out) if words[0] == "distill" else ("--port", 0))) == status
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_nothing_is_learned_under_is_a_mistake() -> None:
    with serving() as service, pytest.raises(BadInputError, match=r"404.*the service needs --learn universal"):
        ReportClient(HttpClient(service.url), "universal").start(20)


def test_the_plot_begins_with_the_first_version_and_ends_with_the_last() -> None:
    assert ONLINE["chosen"](range(1, 42), 4) == [1, 11, 21, 31, 41]
    assert ONLINE["chosen"]([1, 2], 8) == [1, 2]
