import csv
import json
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.data import table
from support.processes import code
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rltemp
from rltemp.agents.config import preset
from rltemp.agents.policy_export import starting_policy
from rltemp.cli.commands import COMMANDS
from rltemp.cli.dispatch import parse
from rltemp.errors import ArtifactRefusedError, BadInputError, TrainingDivergedError
from rltemp.models.weight_files import save_weights
from rltemp.policy.features import RLKD_FEATURES
from rltemp.runs.train_policy import PolicyOptions
from rltemp.training.tensorboard import TAGS

TOY = ("--task", "toy", "--epochs", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run under `dtkd`, seed 3, in which every step is logged."""
    out = tmp_path_factory.mktemp("runs") / "d"
    assert code("distill", *TOY, "--rule", "dtkd", "--seed", 3, "--log-every", 1, "--out", out) == 0
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_help_and_explains_its_options(command: str, capsys):
    assert code(command, "--help") == 0
    assert f"rltemp {command}" in capsys.readouterr().out
    assert code("--help") == 0
    assert f"  {command}  " in capsys.readouterr().out


def test_version_is_the_packages(capsys):
    assert code("--version") == 0
    assert capsys.readouterr().out == f"rltemp {rltemp.__version__}\n"


def test_rules_lists_options_and_sources_without_sb3():
    script = "import sys\nfrom rltemp.cli.main import main\ntry: main(['rules'])\nexcept SystemExit: pass\n"
    script += "assert not {'stable_baselines3', 'gymnasium', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "reference=4" in done.stdout
    assert "https://arxiv.org/abs/2404.12711" in done.stdout


@pytest.mark.parametrize("name", ["dtkd", "dtkd:reference=2"])
def test_rules_with_a_name_shows_all_of_one(name: str, capsys):
    assert code("rules", name) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+)$", said, re.MULTILINE) == ["dtkd", "dtkd"]  # the rule, and the method
    for line in (
        "Formula: T_t = ",
        "Source: Wei and Bai",
        "Options: reference=4,",
        "Bounds: 0.5 to 20",
        "warmup=0.08333",
    ):
        assert line in said


@pytest.mark.parametrize(("name", "entries"), [("none", 1), ("nckd", 1), ("energy", 2)])
def test_rules_with_a_name_looks_into_every_table(name: str, entries: int, capsys):
    assert code("rules", name) == 0
    assert re.findall(rf"^{name}$", capsys.readouterr().out, re.MULTILINE) == [name] * entries


@pytest.mark.parametrize(
    ("name", "said"), [("dtdk", "did you mean 'dtkd'"), ("universal", "rltemp policy show universal")]
)
def test_rules_of_no_formula_is_one_line(name: str, said: str, capsys):
    assert code("rules", name) == 2
    assert said in one_line(capsys)


def test_distill_writes_a_student_its_result_and_documented_tags(distilled: Path):
    assert 0 < read(distilled / "result.json")["test_accuracy"] <= 1
    assert read(distilled / "config.json")["seed"] == 3
    tags = EventAccumulator(str(distilled)).Reload().Tags()
    written = set(tags["scalars"]) | set(tags["histograms"])
    assert {"student/loss", "temperature/teacher_q95", "student/validation_loss", "time/step_ms"} <= written
    assert written <= set(TAGS)


def test_the_same_seed_gives_the_same_student_however_often_it_is_logged(distilled: Path, tmp_path: Path):
    again = ("distill", *TOY, "--rule", "dtkd", "--seed", 3, "--log-every", 1000, "--out", tmp_path / "d")
    assert code(*again) == 0
    first, second = (load_file(folder / "student.safetensors") for folder in (distilled, tmp_path / "d"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_shown_again_and_not_changed(distilled: Path, capsys):
    before = contents(distilled)
    assert code("distill", "--config", distilled, "--out", distilled) == 0
    said = capsys.readouterr().out
    assert "finished before" in said
    assert f"Files: {distilled}" in said
    assert code("distill", "--config", distilled, "--out", distilled, "--seed", 1) == 2
    assert "seed 3 -> 1" in capsys.readouterr().err
    assert contents(distilled) == before


def test_rules_and_seeds_have_folders_of_their_own(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    long = f"ttm:gamma=0.{'1' * 80}"
    runs = [("--rule", "fixed:4"), ("--rule", "fixed:2"), ("--rule", "fixed:2", "--seed", 1), ("--rule", long)]
    for words in runs * 2:  # the second time each is shown
        assert code("distill", *TOY, *words) == 0
    folders = {folder.name for folder in (tmp_path / "runs").iterdir()}
    assert folders > {"distill-toy-fixed-4-0", "distill-toy-fixed-2-0", "distill-toy-fixed-2-1"}
    assert len(folders) == 4
    assert max(map(len, folders)) < 100
    assert capsys.readouterr().out.count("finished before") == 4


def test_a_saved_configuration_comes_back_and_the_command_line_wins(distilled: Path):
    options = parse("distill", ["--config", str(distilled), "--seed", "5"])
    assert (options.task, options.epochs, options.rule, options.seed) == ("toy", 1, "dtkd", 5)
    assert options.out is None


def test_an_unknown_key_in_a_configuration_gets_the_closest_match(tmp_path: Path, capsys):
    (tmp_path / "c.json").write_text('{"epohcs": 3}')
    assert code("distill", "--config", tmp_path / "c.json") == 2
    assert "did you mean 'epochs'" in one_line(capsys)


def test_compare_writes_one_line_a_rule_and_seed(tmp_path: Path, capsys):
    out = tmp_path / "c"
    words = ("--seeds", 3, "--first-seed", 7, "--selection-seeds", 2, "--out", out)
    command = ("compare", "--no-html", *TOY, "--rules", "none", "fixed:1|2", "dtkd", *words, "--against", "fixed:1|2")
    assert code(*command) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["7", "8", "9"] * 3
    result = read(out / "result.json")
    chosen = result["arms"][1]
    assert chosen["rule"] in ("fixed:1", "fixed:2")
    assert set(result["arms"][0]["differences_points"]) == {chosen["rule"]}
    assert "chosen on validation" in (out / "report.md").read_text()
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert code(*command) == 0
    again = capsys.readouterr().out
    assert printed[printed.index(" rule ") :] == again[again.index(" rule ") :]


def test_a_teacher_that_was_written_teaches(tmp_path: Path):
    assert code("train-teacher", *TOY, "--out", tmp_path / "t") == 0
    found = read(tmp_path / "t" / "result.json")
    assert {"train_accuracy", "validation_accuracy", "test_accuracy"} <= set(found)
    assert (tmp_path / "t" / "teacher.safetensors").is_file()


def test_a_training_that_diverges_names_its_step(tmp_path: Path, capsys):
    for rule in ("fixed:4", "dtkd"):
        words = ("--rule", rule, "--student", "mlp:8", "--learning-rate", "1e30", "--out", tmp_path / rule)
        assert code("distill", *TOY, *words) == 4
        *warnings, error = capsys.readouterr().err.splitlines()
        assert re.search("^rltemp: non-finite student logits: .* at step 7", error)
        assert [line.startswith("rltemp: warning: non-finite student logits") for line in warnings] == [True] * 5
        assert not (tmp_path / rule / "result.json").exists()


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("rltemp: ")
    assert err.count("\n") == 1
    return err


MISTAKES = table("cli/mistakes")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_folder(mistake: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, message = MISTAKES[mistake]
    assert code(*words) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_training_that_starts_from_a_policy_has_its_options(capsys):
    words = ["--task", "toy", "--start-from", "universal"]
    found, plain = parse("train-policy", words).policy, parse("train-policy", words[:2]).policy
    assert starting_policy(found) is not None
    assert (found.features, found.reference) != (plain.features, plain.reference)
    assert found.updates == plain.updates
    assert code("train-policy", *words, "--ratio", 3) == 2
    assert "--start-from universal: ratio 4.0 there, 3.0 here" in one_line(capsys)


def test_a_zip_is_refused_as_a_rule(tmp_path: Path, capsys):
    with zipfile.ZipFile(tmp_path / "ppo.zip", "w") as archive:
        archive.writestr("data", "{}")
    assert code("distill", *TOY, "--rule", tmp_path / "ppo.zip") == 3
    assert "ppo.zip" in one_line(capsys)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, capsys):
    from rltemp.models.networks import build_model

    save_weights(build_model("mlp:128", (1, 8, 8), 7), tmp_path / "seven.safetensors", {})
    words = ("--teacher-weights", tmp_path / "seven.safetensors", "--out", tmp_path / "d")
    assert code("distill", *words) == 3
    assert "expected float [10" in one_line(capsys)
    assert not (tmp_path / "d").exists()


def test_exit_codes_tell_the_three_errors_apart():
    errors = (BadInputError("x"), ArtifactRefusedError("x"), TrainingDivergedError("x"))
    assert [error.exit_code for error in errors] == [2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_with_the_command_that_goes_on(monkeypatch, capsys, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(rltemp.cli.main, "run", lambda _: signal.raise_signal(number))
    assert code("distill", "--task", "a b", "--fresh") == 128 + number
    assert f"stopped by {number.name}. Go on with: rltemp distill --task 'a b'\n" in one_line(capsys) + "\n"
    assert signal.getsignal(number) is before


def test_a_presets_options_come_before_the_lines_and_are_the_policys():
    options = parse("train-policy", ["--updates", "3", "--preset", "rlkd", "--no-calibration"])
    assert (options.preset, options.policy.agent, options.policy.updates) == ("rlkd", "sample", 3)
    assert options.policy == PolicyOptions(**{**preset("rlkd"), "updates": 3, "calibration": False})
    assert (options.policy.learning_rate, options.learning_rate) == (1e-4, None)
    assert parse("train-policy", ["--preset=rlkd"]).policy == PolicyOptions(**preset("rlkd"))
    assert parse("train-policy", []).policy == PolicyOptions()


def test_a_run_with_a_preset_is_repeated_by_its_configuration(tmp_path: Path):
    out = tmp_path / "p"
    small = ("--updates", 1, "--students-per-update", 2, "--hidden", 4, "--validation-students", 1, "--passes", 1)
    assert code("train-policy", *TOY, "--preset", "rlkd", *small, "--out", out) == 0
    saved = parse("train-policy", ["--config", str(out)])
    assert (saved.preset, saved.policy.hidden, saved.policy.features) == ("rlkd", (4,), RLKD_FEATURES)
    beside = parse("train-policy", ["--config", str(out), "--preset", "rlkd"])
    assert beside.policy.hidden == (256, 256)
    (tmp_path / "own.json").write_text('{"preset": "rlkd", "updates": 7}')
    by_hand = parse("train-policy", ["--config", str(tmp_path / "own.json")])
    assert (by_hand.policy.updates, by_hand.policy.hidden) == (7, (256, 256))
    rules = ("--rules", "fixed:5", out / "policy.safetensors", "--against", "fixed:5")
    assert code("compare", "--no-html", *TOY, *rules, "--seeds", 2, "--out", tmp_path / "c") == 0
