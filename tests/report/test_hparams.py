"""The HParams sessions of a comparison, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from rltemp.data.tasks import load_task
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import Row
from rltemp.experiments.statistics import Paired
from rltemp.report.hparams import METRICS, session_name, write_sessions
from rltemp.report.markdown import Section

MEASURED = {"calibration_error": (12.5, 0.5), "agreement": (math.nan, math.nan)}
ROWS = [
    Row("fixed:4", 90.0, 0.5, {"fixed:4": Paired(0.0, 0.0, 0.0, 8)}, 8),
    Row("dtkd:reference=2", 91.5, math.nan, {"fixed:4": Paired(1.5, 1.0, 2.0, 8)}, 8, measures=MEASURED),
    Row("../../<x>", 80.0, 0.5, {"fixed:4": Paired(math.nan, math.nan, math.nan, 0)}, 8),
]
SECTION = Section(load_task("digits"), 0.98, ROWS)


def session(folder: Path) -> tuple[dict[str, object], dict[str, float], list[str]]:
    """Hyperparameters, scalars and the metrics that the experiment declares, of one folder."""
    events = EventAccumulator(str(folder)).Reload()
    tags = events.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(tags[metadata.EXPERIMENT_TAG])
    hparams = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    columns = {info.name: info.differs for info in experiment.hparam_infos}
    assert columns == {"rule": True, "task": False}, "what else is there is the same everywhere"
    return hparams, scalars, [info.name.tag for info in experiment.metric_infos]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_sessions(tmp_path / "t", SECTION, seeds=8)
    return tmp_path / "t"


def test_every_method_is_a_session_with_its_options_and_its_numbers(written: Path):
    hparams, scalars, _ = session(written / "001-dtkd-reference=2")
    assert hparams["rule"] == "dtkd:reference=2"
    assert hparams["task"] == "digits"
    assert hparams["epochs"] == load_task("digits").recipe.epochs
    assert hparams["seeds"] == 8
    expected = {
        "compare/accuracy": 91.5,
        "compare/difference": 1.5,
        "compare/difference_low": 1.0,
        "compare/difference_high": 2.0,
        "compare/calibration_error": 12.5,
    }
    assert scalars == pytest.approx(expected)


def test_every_session_declares_the_metrics_of_all(written: Path):
    every = [
        *("compare/accuracy", "compare/standard_error", "compare/difference", "compare/difference_low"),
        *("compare/difference_high", "compare/calibration_error"),
    ]
    for place, row in enumerate(ROWS):
        assert session(written / session_name(place, row.rule))[2] == every
    assert set(every) <= set(METRICS)


def test_losses_come_before_accuracies(tmp_path: Path):
    losses = [replace(row, quantity=LOSS) for row in ROWS]
    write_sessions(tmp_path, replace(SECTION, losses=losses), seeds=8)
    declared = session(tmp_path / "000-fixed-4")[2]
    assert declared[:2] == ["compare/loss", "compare/loss_standard_error"]
    assert "compare/accuracy" in declared[5:]


def test_the_baseline_and_what_is_not_compared_have_no_difference(written: Path):
    for place in (0, 2):
        assert set(session(written / session_name(place, ROWS[place].rule))[1]) == {
            "compare/accuracy",
            "compare/standard_error",
        }


def test_a_name_that_is_a_path_stays_in_the_folder_and_is_there_once(written: Path):
    write_sessions(written, SECTION, seeds=8)
    assert len(list(written.rglob("events*"))) == len(ROWS)
    assert sorted(path.name for path in written.iterdir()) == ["000-fixed-4", "001-dtkd-reference=2", "002-x"]
    assert session(written / "002-x")[0]["rule"] == "../../<x>"


def test_what_is_no_number_is_written_in_words(tmp_path: Path):
    task = load_task("imagefolder:pictures", recipe="imagenet")
    write_sessions(tmp_path / "t", replace(SECTION, task=task), seeds=8)
    assert session(tmp_path / "t" / "000-fixed-4")[0]["milestones"] == "(0.3, 0.6, 0.9)"
