"""scripts/rules_table.py: results are trained once, of one setting, and the page shows them."""

from __future__ import annotations

import json
from pathlib import Path
from runpy import run_path

import pytest

from rltemp import BadInputError

ROOT = Path(__file__).parents[2]
METHODS = ("none", "fixed", "dtkd", "matched:dtkd")


def script(*words: object) -> None:
    run_path(str(ROOT / "scripts" / "rules_table.py"))["main"]([str(word) for word in words])


def train(file: Path, seeds: int, *more: object) -> None:
    words = ("train", "--task", "toy", "--label", "toy", "--epochs", 1, "--cells", file, "--methods", *METHODS)
    script(*words, "--seeds", seeds, *more)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("results") / "toy.jsonl"
    train(file, 2)
    return file


def test_a_setting_and_one_line_for_every_method_and_seed(results: Path) -> None:
    setting, *lines = map(json.loads, results.read_text("utf-8").splitlines())
    assert (setting["label"], setting["recipe"]["epochs"]) == ("toy", 1)
    assert [(line["method"], line["seed"]) for line in lines] == [(name, seed) for name in METHODS for seed in (0, 1)]
    assert all(0 < line["test"] < 1 for line in lines)


def test_more_seeds_train_only_what_is_missing(results: Path) -> None:
    before = results.read_text("utf-8")
    train(results, 2)
    assert results.read_text("utf-8") == before
    train(results, 3)
    added = results.read_text("utf-8").removeprefix(before).splitlines()
    assert [json.loads(line)["seed"] for line in added] == [2] * len(METHODS)


def test_results_of_another_setting_are_not_mixed_in(results: Path) -> None:
    with pytest.raises(BadInputError, match="another setting"):
        train(results, 2, "--learning-rate", "0.1")


def test_results_of_another_processor_say_so(results: Path, tmp_path: Path) -> None:
    setting, *lines = results.read_text("utf-8").splitlines()
    file = tmp_path / "toy.jsonl"
    file.write_text(json.dumps({**json.loads(setting), "processor": "Abacus"}) + f"\n{lines[0]}\n", "utf-8")
    train(file, 1)
    found = [json.loads(line).get("processor", "Abacus") for line in file.read_text("utf-8").splitlines()[1:]]
    assert found[0] == "Abacus"
    assert len(found) == len(METHODS)
    assert "Abacus" not in found[1:]
    script("write", tmp_path / "rules.md", file)
    assert f"Abacus and {found[1]}, one thread" in (tmp_path / "rules.md").read_text("utf-8")


def test_the_page_has_a_row_a_method_with_paired_differences(results: Path, tmp_path: Path) -> None:
    script("write", tmp_path / "rules.md", results)
    page = (tmp_path / "rules.md").read_text("utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert {"none", "fixed", "dtkd"} <= set(rows)
    lines = map(json.loads, results.read_text("utf-8").splitlines()[1:])
    by_seed = {(line["method"], line["seed"]): line["test"] for line in lines}
    seeds = sorted({seed for _, seed in by_seed})
    mean = 100 * sum(by_seed["dtkd", seed] - by_seed["fixed", seed] for seed in seeds) / len(seeds)
    assert f"{mean:+.2f} [" in rows["dtkd"]


def test_the_page_in_docs_is_what_the_results_in_docs_give(tmp_path: Path) -> None:
    files = ("rules/digits", "rules/cifar100", "results/tokens")
    script("write", tmp_path / "rules.md", *(ROOT / "docs" / f"{file}.jsonl" for file in files))
    assert (tmp_path / "rules.md").read_text("utf-8") == (ROOT / "docs" / "rules.md").read_text("utf-8")
