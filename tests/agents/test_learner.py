"""Learning from reported runs: PPO without an environment, the ledger, the thread, the state."""

from __future__ import annotations

import json
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.data import table
from support.policies import random_policy
from support.processes import until
from support.reports import EXPLORATION, draws, judged, layout, records, report, state_of
from torch import Tensor

from rltemp.agents.config import LearnerConfig
from rltemp.agents.learner import FinishedRun, Learner, log_probability, network_of
from rltemp.agents.reports import ConflictError, Ledger, Receipt, Record, Report, parts
from rltemp.envs.advantages import group_advantages
from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.policy.policy_file import check_policy, read_policy

FEW = LearnerConfig(students_per_update=16)


def finished(group: str, action: Tensor, mean: Tensor, improvement: float) -> FinishedRun:
    likelihood = float(log_probability(action, mean, EXPLORATION))
    return FinishedRun(group, np.zeros(8, np.float32), action.numpy(), likelihood, improvement)


def ledger(least: int = 4, max_staleness: int = 1) -> tuple[Ledger, Tensor]:
    """A ledger of the shipped layout at version 1, and its mean."""
    made, mean = Ledger(8, EXPLORATION, "margin", max_staleness, least), torch.zeros(27)
    made.begin(1, mean)
    return made, mean


def test_a_run_is_judged_against_the_others_of_its_group() -> None:
    found = group_advantages(np.array([3.0, 1.0, 5.0, 2.0, 2.0, 7.0], np.float32), np.array([0, 0, 1, 1, 1, 0]))
    # 0: 3 - 4, 1 - 5, 7 - 2; 1: 5 - 2, 2 - 3.5, 2 - 3.5
    by_hand = np.array([-1.0, -4.0, 3.0, -1.5, -1.5, 5.0])
    np.testing.assert_allclose(found, by_hand / np.sqrt(np.mean(by_hand**2)), rtol=1e-6)
    with pytest.raises(ValueError, match="another of its group"):
        group_advantages(np.zeros(3, np.float32), np.array([0, 0, 1]))


def test_in_groups_of_one_size_the_whole_groups_mean_is_the_same_baseline() -> None:
    """To the last bit: what train-policy computed before both learners had one function."""
    drawn = np.random.default_rng(0)
    for replicas in (2, 3, 8, 64):
        returns = drawn.normal(0.3, 0.05, 5 * replicas).astype(np.float32)
        rows = returns.reshape(5, replicas)
        centred = rows - rows.mean(1, keepdims=True)
        wanted = (centred / max(float(centred.std()), 1e-8)).flatten()
        np.testing.assert_array_equal(group_advantages(returns, np.arange(len(returns)) // replicas), wanted)


def test_what_a_group_shares_teaches_nothing() -> None:
    groups = np.array([0, 0, 1, 1])
    alone = group_advantages(np.array([0.1, 0.2, 0.5, 0.3], np.float32), groups)
    moved = group_advantages(np.array([0.1 + 9, 0.2 + 9, 0.5, 0.3], np.float32), groups)
    np.testing.assert_allclose(alone, moved, rtol=1e-4)


def test_a_learner_does_not_keep_to_what_the_first_policy_has_seen(tmp_path: Path) -> None:
    first = read_policy(random_policy(tmp_path / "p.safetensors", seen=(-1.0, 1.0)))
    assert "low" in first.manifest.features[0].model_dump()
    assert all("low" not in one.model_dump() for one in Learner(first, FEW).layout.features)


def test_the_first_step_goes_towards_the_better_draw_by_the_learning_rate() -> None:
    learner = Learner(layout(), LearnerConfig(passes=1, learning_rate=0.01))
    mean = learner.mean_parameters
    better, worse = draws(mean, 2, seed=0)
    learner.update([finished("g", better, mean, 0.7), finished("g", worse, mean, 0.6)])
    # Adam's first step is the sign of the gradient of the better draw's log-probability.
    torch.testing.assert_close(learner.mean_parameters - mean, 0.01 * (better - mean).sign(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(learner.served_parameters, 0.8 * mean + 0.2 * learner.mean_parameters)


def bandit(sign: float, permuted: bool, updates: int = 60) -> float:
    """How far the mean is from a known optimum at the end, in units of how far it was."""
    learner, generator = Learner(layout(), replace(FEW, learning_rate=0.02)), np.random.default_rng(0)
    best = learner.mean_parameters + 0.3 * torch.randn(27, generator=torch.Generator().manual_seed(5)).sign()
    start = float((learner.served_parameters - best).norm())
    for update in range(updates):
        runs = []
        for group in range(2):
            mean, offset = learner.mean_parameters, float(generator.normal())
            drawn = draws(mean, 8, seed=100 * update + group)
            worth = -(drawn - best).square().sum(-1).numpy()
            worth = sign * (generator.permutation(worth) if permuted else worth)
            runs += [finished(str(group), one, mean, float(w) + offset) for one, w in zip(drawn, worth, strict=True)]
        learner.update(runs)
    return float((learner.served_parameters - best).norm()) / start


def test_it_finds_a_bandits_optimum_unless_rewards_are_void_or_opposite() -> None:
    assert bandit(1.0, permuted=False) < 0.35
    assert bandit(1.0, permuted=True) > 0.7
    assert bandit(-1.0, permuted=False) > 1.2


def test_version_1_is_the_reference_unless_the_weights_are_kept() -> None:
    assert not Learner(layout(), FEW).mean_parameters.any()
    torch.testing.assert_close(
        Learner(layout(), FEW, keep_weights=True).mean_parameters, network_of(layout()).weights.detach()
    )


def test_a_restored_learner_goes_on_with_the_same_numbers() -> None:
    def update(learner: Learner, seed: int) -> None:
        mean = learner.mean_parameters
        values = np.random.default_rng(seed).normal(size=8)
        drawn = draws(mean, 8, seed)
        learner.update([finished("g", one, mean, float(v)) for one, v in zip(drawn, values, strict=True)])

    first, second = Learner(layout(), FEW), Learner(layout(), FEW)
    update(first, 0)
    second.restore(first.state())
    update(first, 1)
    update(second, 1)
    assert torch.equal(first.mean_parameters, second.mean_parameters)
    assert torch.equal(first.served_parameters, second.served_parameters)
    assert first.version == second.version == 3


# The ledger


def test_a_look_is_taken_in_once_however_often_it_comes() -> None:
    taken, mean = ledger()
    sent = report(records(mean, 1, [[0.1, 0.2], [0.3, 0.1]]))
    assert taken.take(sent) == Receipt(accepted=4, known=0, stale=0, version=1)
    assert taken.take(sent) == Receipt(accepted=0, known=4, stale=0, version=1)
    assert [round(run.improvement, 6) for run in taken.finished()] == [0.3, 0.4]
    assert taken.take(sent).known == 4  # after it was learned from, too
    assert taken.finished() == []


def test_a_report_with_another_content_for_a_known_evaluation_is_not_taken() -> None:
    taken, mean = ledger()
    known, fresh = records(mean, 1, [[0.1, 0.2]]), records(mean, 1, [[0.1]], seed=1)
    taken.take(report(known))
    with pytest.raises(ConflictError, match="look 1 of run"):
        taken.take(report([*fresh, known[1].model_copy(update={"reward": 0.25})]))
    assert taken.take(report(fresh)).accepted == 1
    with pytest.raises(ConflictError, match="says otherwise"):
        taken.take(report([fresh[0].model_copy(update={"step": 1, "steps": 2})]))


def test_a_run_counts_when_all_its_looks_are_in_and_its_group_has_another() -> None:
    taken, mean = ledger(least=2)
    found = records(mean, 1, [[0.1, 0.2, 0.0], [0.3, 0.1, 0.0]])
    taken.take(report([found[5], *found[:4]]))  # in any order
    assert not taken.due()
    taken.take(report([found[4]]))
    assert taken.due()
    alone, _ = ledger(least=1)
    alone.take(report(found[:3]))
    assert not alone.due(), "a run alone in its group cannot be judged"


def test_what_is_too_old_is_stale_and_what_waits_of_it_is_forgotten() -> None:
    taken, mean = ledger(max_staleness=1)
    first = records(mean, 1, [[0.1, 0.2], [0.3, 0.1]])
    taken.take(report(first[:3]))
    taken.begin(2, mean)
    assert taken.take(report(first[3:])).accepted == 1  # one version back is learned from
    taken.begin(3, mean)
    assert taken.take(report(records(mean, 1, [[0.1]], seed=7))) == Receipt(accepted=0, known=0, stale=1, version=3)
    assert taken.take(report(records(mean, 9, [[0.1]], seed=8))).stale == 1
    assert taken.finished() == []
    assert taken.counts["expired_runs"] == 2


def test_what_waits_is_restored_but_for_versions_that_are_gone() -> None:
    taken, mean = ledger(least=2)
    found = records(mean, 1, [[0.1, 0.2], [0.3, 0.1]])
    taken.take(report(found[:3]))
    again, _ = ledger(least=2)
    again.restore(taken.state())
    assert again.take(report(found)) == Receipt(accepted=1, known=3, stale=0, version=1)
    assert [round(run.improvement, 6) for run in again.finished()] == [0.3, 0.4]
    later = Ledger(8, EXPLORATION, "margin", 1, 2)
    later.begin(3, mean)
    later.restore(taken.state())
    assert later.state() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probability": 20.0}, r"records\[1\].log_probability is 20; the draw has"),
        ({"reward": 1.5}, r"records\[1\].reward is 1.5; margin changes by 1 at most"),
        ({"action": [0.0] * 26}, r"records\[1\].action has 26 numbers; this policy needs 27"),
        ({"observation": [0.0]}, r"records\[1\].observation has 1 numbers; this policy needs 8"),
        (
            {"observation": [0.0] * 7 + [-1e308]},
            r"records\[1\].observation holds 1e\+308; features lie within",
        ),
        ({"action": [0.0] * 26 + [5.0]}, r"records\[1\].action\[26\] is 50.0 standard deviations"),
        ({"step": 3}, r"records\[1\].step is 3; its run has 2 looks"),
        ({"step": 1, "reward": -0.95}, None),
    ],
)
def test_a_record_that_cannot_be_right_is_refused_by_name(change: dict[str, Any], message: str | None) -> None:
    taken, mean = ledger()
    first, second = records(mean, 1, [[0.1], [0.2]], seed=3)
    second = second.model_copy(update={"steps": 2, **change})
    if message is None:
        assert taken.take(report([first, second])).accepted == 2
        return
    with pytest.raises(BadInputError, match=message):
        taken.take(report([first, second]))
    assert taken.take(report([first])).known == 0, "nothing of the report was taken in"


def test_rewards_that_sum_to_more_than_the_potential_has_are_refused() -> None:
    taken, mean = ledger()
    with pytest.raises(BadInputError, match=r"sum to 1\.2"):
        taken.take(report(records(mean, 1, [[0.6, 0.6]])))
    with pytest.raises(BadInputError, match="log_odds"):
        taken.take(Report(potential="log_odds", records=records(mean, 1, [[0.6]])))


def test_numbers_that_are_not_finite_and_texts_do_not_pass_the_schema() -> None:
    good = records(torch.zeros(27), 1, [[0.5]])[0].model_dump()
    for change in ({"reward": float("nan")}, {"action": [float("inf")] * 27}, {"reward": "0.5"}, {"reward": True}):
        with pytest.raises(ValueError, match=r"validation error"):
            Record.model_validate({**good, **change})


def test_a_long_report_goes_in_parts_and_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, mean = ledger()
    whole = report(records(mean, 1, [[0.1, 0.2]] * 8))
    assert parts(whole) == [whole]
    monkeypatch.setattr("rltemp.agents.reports.REPORT_BYTES", len(whole.model_dump_json()) // 3)
    pieces = parts(whole)
    assert len(pieces) > 2
    assert [record for piece in pieces for record in piece.records] == whole.records
    for piece in pieces:
        taken.take(piece)
    assert len(taken.finished()) == 8


def test_the_oldest_runs_expire_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.agents.reports.KEPT_RUNS", 8)
    taken, mean = ledger(least=100)
    for seed in range(10):
        taken.take(report(records(mean, 1, [[0.1], [0.2]], seed)))
    assert taken.counts["expired_runs"] == 12
    assert len(taken.finished()) == 8
    monkeypatch.setattr("rltemp.agents.reports.KEPT_BYTES", 10_000)
    taken.take(report(records(mean, 1, [[0.0] * 30] * 2, seed=99)))
    assert taken.counts["expired_runs"] == 13, "a run of 30 looks takes more than 8,000 bytes"
    assert len(taken.finished()) == 0


# The thread beside the request handler


@pytest.fixture
def learning(tmp_path: Path) -> Any:
    pytest.importorskip("fastapi", reason="rltemp[serve] is not installed")
    from rltemp.service.learning import Learning
    from rltemp.service.repository import Repository

    def make(folder: str = "state", **settings: Any) -> Any:
        config = LearnerConfig(**{"students_per_update": 16, **settings})
        return Learning("online", layout(), config, tmp_path / folder, Repository())

    return make


def centre_of(learning: Any, version: int) -> Tensor:
    return network_of(check_policy(learning.find(version).centre, Path("centre"))).weights.detach()


def bounded_worth(drawn: Tensor) -> Tensor:
    return 0.5 + 0.1 * drawn.sum(-1).tanh()


def feed(learning: Any, version: int) -> None:
    """Two groups around a version, and wait for the next."""
    for seed in range(2):
        learning.ledger.take(judged(centre_of(learning, version), version, 10 * version + seed, bounded_worth))
    until(lambda: learning.version > version or learning.failure)
    assert not learning.failure


def test_every_version_is_whole_for_whoever_asks_while_it_is_published(learning: Any) -> None:
    made = learning()
    made.start()
    seen: dict[str, set[bytes]] = {}
    stop = threading.Event()
    features = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)

    def ask() -> None:
        while not stop.is_set():
            model = made.repository.find("online")
            found = model.infer({"features": features}, ("action",)).outputs["action"].tobytes()
            seen.setdefault(model.version, set()).add(found)

    asking = threading.Thread(target=ask)
    asking.start()
    for version in range(1, 7):
        feed(made, version)
    stop.set()
    asking.join()
    made.stop()
    assert len(seen) > 2
    assert all(len(answers) == 1 for answers in seen.values()), "a version has one answer"
    assert len(set.union(*seen.values())) == len(seen), "and every version another"


def test_a_service_that_was_killed_goes_on_with_the_same_bytes(learning: Any) -> None:
    first, undisturbed = learning("a"), learning("b")
    for one in (first, undisturbed):
        one.start()
        for version in (1, 2):
            feed(one, version)
    again = learning("a")  # nothing was told to the first: to the state's folder this is a kill
    assert again.version == 3
    for version in (1, 2, 3):
        assert again.find(version) == first.find(version)
        assert again.repository.find("online", str(version)).data == first.repository.find("online", str(version)).data
    again.start()
    feed(again, 3)
    feed(undisturbed, 3)
    assert again.find(4) == undisturbed.find(4)
    sent = judged(centre_of(first, 2), 2, 20, bounded_worth)
    assert again.ledger.take(sent).known == 16, "what was learned from before is still known"
    for one in (first, undisturbed, again):
        one.stop()


def test_the_state_of_other_settings_is_refused(learning: Any) -> None:
    learning()
    with pytest.raises(ArtifactRefusedError, match=r"exploration 0\.1 -> 0\.2"):
        learning(exploration=0.2)


def test_a_version_that_cannot_be_saved_is_not_published(learning, tmp_path, monkeypatch):
    made = learning()
    made.start()
    folder = tmp_path / "state" / "online"
    saved = state_of(folder)
    folder.rename(tmp_path / "moved")
    folder.write_text("no folder")
    tries = 0
    save = made._save

    def counted(versions: Any) -> None:
        nonlocal tries
        save(versions)
        tries += 1

    monkeypatch.setattr(made, "_save", counted)
    for seed in range(2):
        made.ledger.take(judged(centre_of(made, 1), 1, seed, bounded_worth))
    until(lambda: tries)
    assert (made.learner.version, made.version) == (2, 1)
    folder.unlink()
    (tmp_path / "moved").rename(folder)
    for seed in range(2, 4):
        made.ledger.take(judged(centre_of(made, 1), 1, seed, bounded_worth))
    until(lambda: made.version > 1)
    made.stop()
    assert made.version == 3
    assert saved == ["version-000000001.ckpt"]
    assert state_of(folder)[-1] == "version-000000003.ckpt"


def test_an_update_that_no_policy_file_can_hold_is_not_published_or_saved(learning: Any) -> None:
    made = learning(learning_rate=1e4)  # weights above 1,000 are refused wherever they are read
    made.start()
    for seed in range(2):
        made.ledger.take(judged(centre_of(made, 1), 1, seed, bounded_worth))
    until(lambda: made.failure)
    assert "needed: finite, below 1000" in made.failure
    made.stop()
    assert (made.version, learning(learning_rate=1e4).version) == (1, 1), "and the service starts again"


GOOD = report(records(torch.zeros(27), 1, [[0.1], [0.2]])).model_dump_json()


BODIES = [
    (b"\xff\xfe", 400),
    (b"[" * 100_000, 400),
    (GOOD.replace('"reward":0.2', f'"reward":{10**400}').encode(), 422),
    *((text.encode(), status) for text, status in table("agents/hostile_reports", "bodies")),
    *((GOOD.replace(old, new).encode(), status) for old, new, status in table("agents/hostile_reports", "changes")),
]


@pytest.mark.parametrize(("body", "status"), BODIES)
def test_whatever_is_sent_is_refused_with_its_code(learning: Any, body: bytes, status: int) -> None:
    made = learning()
    from rltemp.service.experience import taken
    from rltemp.service.refusals import Refusal

    with pytest.raises(Refusal) as refused:
        taken(made, body)
    assert refused.value.status == status, refused.value.message
    assert len(refused.value.message) < 400
    assert taken(made, GOOD.encode()).accepted == 2, "nothing of it was taken in"


# Over HTTP


def test_reports_over_http_are_answered_learned_from_and_survive_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="rltemp[serve] is not installed")
    from support.services import serving

    words = ("--learn", "online", "--state", tmp_path / "state", "--learning.students-per-update", 16)

    def post(service: Any, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
        path = "/v2/models/online/experience"
        status, _, answer = service.request("POST", path, body, Content_Type=kind)
        return status, json.loads(answer)

    mean = torch.zeros(27)
    bodies = [judged(mean, 1, seed, bounded_worth) for seed in range(2)]
    with serving(*words) as service:
        status, headers, first = service.request("GET", "/v2/models/online/centre")
        assert (status, headers["rltemp-model-version"]) == (200, "1")
        assert service.request("GET", "/v2/models/online/centre", If_None_Match=headers["etag"])[0] == 304
        good = bodies[0].model_dump_json().encode()
        assert post(service, good) == (200, {"accepted": 16, "known": 0, "stale": 0, "version": 1})
        assert post(service, good)[1]["known"] == 16
        changed = bodies[0].model_copy(update={"records": [bodies[0].records[0].model_copy(update={"reward": 0.01})]})
        assert post(service, changed.model_dump_json().encode())[0] == 409
        wrong = good.replace(b'"step":0', b'"step":7')
        assert post(service, wrong)[0] == 400
        assert post(service, good.replace(b'"reward":', b'"rewards":'))[0] == 422
        assert post(service, b'{"potential": "margin", "records": [NaN]}')[0] == 422
        assert post(service, good, "application/octet-stream")[0] == 415
        assert service.request("POST", "/v2/models/universal/experience", good)[0] == 404
        assert post(service, bodies[1].model_dump_json().encode())[0] == 200
        paths = [f"/v2/models/online/versions/{v}/{kind}" for v in (1, 2) for kind in ("centre", "policy")]
        until(lambda: all(service.request("GET", path)[0] == 200 for path in paths))
        before = [service.request("GET", path)[2] for path in paths]
        assert before[0] == first
        metrics = service.request("GET", "/metrics")[2].decode()
        assert 'rltemp_experience_records_total{fate="accepted",model="online"} 32.0' in metrics
        assert 'rltemp_learning_version{model="online"} 2.0' in metrics
        manual = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
        told = re.findall(r"^# TYPE (rltemp_(?:experience|learning)_\w+)", metrics, re.MULTILINE)
        assert len(told) == 7
        assert [name for name in told if f"`{name}`" not in manual] == []
        served = json.loads(service.request("GET", "/openapi.json")[2])
        assert "/v2/models/{model}/experience" in served["paths"]
        service.process.send(signal.SIGKILL)
        service.process.finish()
    with serving(*words) as service:
        assert [service.request("GET", path)[2] for path in paths] == before
        assert post(service, good)[1]["known"] == 16
