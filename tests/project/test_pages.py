"""What the pages show is run: every block, under the heading it stands, as `support.pages` says."""

from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.pages import (
    PAGES,
    PROGRAMS,
    RUN,
    SHOWN,
    WRITTEN_BY_PROGRAMS,
    Block,
    Section,
    Session,
    blocks,
    command_lines,
    sections,
)
from support.source import ROOT

import rltemp
from rltemp.cli.commands import group
from rltemp.cli.dispatch import parse
from rltemp.policy.policy_file import read_policy

BLOCKS = [block for page in PAGES for block in blocks(page)]
SECTIONS = [found for page in PAGES for found in sections(page) if any(block.is_run for block in found.blocks)]
OF_PUBLIC_NAMES = ("README.md", "docs/index.md", "docs/in-a-loop.md", "docs/own-")
"""Pages for readers who know nothing of the inside."""

Names = dict[str, Any]


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(one, id=one.name, marks=[pytest.mark.slow] * any(block.slow for block in one.blocks))
        for one in SECTIONS
    ],
)
def test_the_blocks_of_a_section_run(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Session(section, tmp_path) as session:
        names = {**session.run(), "printed": session.printed}
        CHECKS.get(section.name, lambda _: None)(names)
    for block in section.blocks:
        if bound := re.fullmatch(r"output within ([\d.]+)", block.note):
            assert_alike(session.printed, block.code, float(bound[1]))


def assert_alike(printed: str, shown: str, within: float) -> None:
    """The same words, and numbers no further apart than that."""
    number = r"-?\d+\.\d+"
    assert re.sub(number, "#", printed).split() == re.sub(number, "#", shown).split()
    found, wanted = ([float(one) for one in re.findall(number, text)] for text in (printed, shown))
    assert found == pytest.approx(wanted, abs=within)


def of_the_loop(names: Names) -> None:
    names["loss"].backward()
    assert names["student_logits"].grad.abs().sum() > 0


def of_tokens(names: Names) -> None:
    names["loss"].backward()
    mask = names["student_logits"].grad.ne(0).any(-1)
    assert mask.tolist() == [[True, True, False], [True, False, False]]


def of_the_environment(names: Names) -> None:
    assert names["observation"].shape == (50, 8)
    assert (names["terminated"], names["truncated"]) == (False, False)


def of_the_rule(_: Names) -> None:
    rule = rltemp.load_rule("my_rules.py:softer_where_unsure")
    certain, unsure = torch.tensor([[50.0, 0.0]]), torch.zeros(1, 2)
    assert rule(rltemp.Signals(certain, certain)).teacher.item() == pytest.approx(2.0)
    assert rule(rltemp.Signals(unsure, unsure)).teacher.item() == pytest.approx(4.0)


def temperatures(policy: str, classes: int) -> torch.Tensor:
    """What a policy file answers for some samples, `[8]`."""
    student, teacher = torch.randn(2, 8, classes, generator=torch.Generator().manual_seed(0))
    return rltemp.Controller(policy).temperatures(student, 3 * teacher, torch.arange(8) % classes, progress=0.5).student


def of_logits_from_a_file(names: Names) -> None:
    assert names["result"]["test_accuracy"] > 0.8
    assert names["result"]["task"]["teacher"] == "logits.npy"
    assert f"{100 * names['result']['test_accuracy']:.1f} %" in names["printed"]
    saved = load_file("runs/from-a-file/student.safetensors")
    right = [saved["weight"] @ torch.tensor(image) + saved["bias"] for image in names["images"][1400:]]
    found = (torch.stack(right).argmax(-1).numpy() == names["labels"][1400:]).mean()
    assert found == pytest.approx(names["result"]["test_accuracy"])


def of_a_network_with_dropout(names: Names) -> None:
    policy = "runs/own/policy/policy.safetensors"
    rules = [row["rule"] for row in names["compared"]["arms"]]
    assert [rule.partition(":")[0] for rule in rules[:3]] == ["none", "fixed", "dtkd"]
    assert rules[3:] == [policy]
    assert all(row["n"] == 8 and row["accuracy_percent"] > 50 for row in names["compared"]["arms"])
    assert temperatures(policy, 10).unique().numel() > 1
    state = load_file("runs/own/student/student.safetensors")
    assert names["make_student"](0).load_state_dict(state).missing_keys == []
    assert state["features.1.num_batches_tracked"] > 0
    assert names["student"]["test_accuracy"] > 0.5
    assert Path("runs/own/compare/report.html").stat().st_size > 10_000
    assert list(Path("runs/own/policy").rglob("events.out.tfevents.*"))


def of_tokens_with_padding(names: Names) -> None:
    rows = names["compared"]["arms"]
    policy = "runs/tokens/policy/policy.safetensors"
    assert [row["rule"] for row in rows] == ["none", "fixed:1", "fixed:2", policy]
    losses = [row["measures"]["negative_log_likelihood"]["mean"] for row in rows]
    assert all(loss < math.log(12) - 0.5 for loss in losses)  # of one who guesses
    assert len(set(losses)) == 4
    assert temperatures(policy, 12).unique().numel() > 1


def of_the_command_line(_: Names) -> None:
    mine = Path("runs/mine")
    student, other = (load_file(mine / name / "student.safetensors") for name in ("student", "other"))
    assert [value.shape for value in student.values()] == [value.shape for value in other.values()]
    assert any(not torch.equal(value, other[name]) for name, value in student.items())
    assert len((mine / "compare" / "results.csv").read_text().splitlines()) == 1 + 4 * 16
    assert temperatures(str(mine / "policy" / "policy.safetensors"), 3).unique().numel() > 1


def of_a_loop_that_learns(names: Names) -> None:
    assert read_policy("policy.safetensors").manifest.provenance["runs_learned_from"] == 64
    assert names["controller"].temperatures(*torch.randn(2, 8, 5), progress=0.5).student.shape == (8,)


def of_a_loop_with_a_service(names: Names) -> None:
    assert names["controller"].counts == {"reported": 64, "forgotten": 0, "fallback": 0}


def of_the_client(names: Names) -> None:
    assert names["temperatures"].shape == (128,)


def of_a_run_under_the_service(names: Names) -> None:
    expected = rltemp.load_method("universal").loss(names["signals"]).mean()
    torch.testing.assert_close(names["loss"], expected)
    assert names["method"].rule.counts()["steps"] == 1


def of_an_own_agent(_: Names) -> None:
    assert temperatures("mine.safetensors", 10).unique().numel() > 1


CHECKS: dict[str, Callable[[Names], None]] = {
    "README: Use it": of_the_loop,
    "in-a-loop: Your own loop": of_the_loop,
    "in-a-loop: Other entrances": of_tokens,
    "language-models: Which way in": of_tokens,
    "rl: One student: `rltemp/Distill-v0`": of_the_environment,
    "rl: A loop of your own": of_an_own_agent,
    "own-rule: Your own rule": of_the_rule,
    "own-task: Teacher logits from a file": of_logits_from_a_file,
    "own-task: A network with dropout and batch norm": of_a_network_with_dropout,
    "own-task: Tokens with padding": of_tokens_with_padding,
    "own-task: The command line": of_the_command_line,
    "own-loop: Learning in your own loop": of_a_loop_that_learns,
    "own-loop: Many processes: a service": of_a_loop_with_a_service,
    "service: The controller service": of_the_client,
    "service: From a training run": of_a_run_under_the_service,
}
"""What holds after a section's blocks have run, beside that they ran."""


def test_what_is_checked_is_a_section_that_runs() -> None:
    assert CHECKS.keys() <= {section.name for section in SECTIONS}


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_a_block_is_run_or_shown_or_says_why_not(block: Block) -> None:
    if Path(block.place.partition(":")[0]).name in WRITTEN_BY_PROGRAMS:
        return
    assert block.language in (*RUN, *SHOWN), f"{block.place}: the fence names no language that is known"
    known = r"|slow|(slow, )?with [a-z_ ]+|held by tests/\S+\.py|not run: .{10,}|output within [\d.]+"
    assert re.fullmatch(known, block.note), f"{block.place}: {block.note!r} is no comment of CONTRIBUTING.md"


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.holder], ids=place)
def test_the_test_that_holds_a_block_reads_its_page(block: Block) -> None:
    stem = Path(block.place.partition(":")[0]).stem
    text = (ROOT / block.holder).read_text("utf-8") + (ROOT / "tests/support/kits.py").read_text("utf-8")
    assert re.search(rf"[\"/]{stem}(\.md)?\"", text), f"{block.holder} does not read {stem}.md"


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "bash"], ids=place)
def test_every_command_of_a_page_is_understood(block: Block) -> None:
    for words in command_lines(block):
        if words[0] == "rltemp":
            named = 3 if group(words[1]) else 2
            parse(" ".join(words[1:named]), words[named:])
        elif not (block.holder or block.note.startswith("not run: ")):
            assert words[0] in PROGRAMS, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_hides_behind_an_indentation(page: Path) -> None:
    if page.name not in WRITTEN_BY_PROGRAMS:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"(?:^|\n)\n    \S.*", text) == []


PUBLIC = [one for one in BLOCKS if one.language == "python" and one.place.startswith(OF_PUBLIC_NAMES)]


@pytest.mark.parametrize("block", PUBLIC, ids=place)
def test_a_block_for_a_beginner_touches_public_names_alone(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("rltemp.") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.module.partition(".")[0] != "rltemp"
        if isinstance(node, ast.Attribute):
            assert node.attr == "__init__" or not node.attr.startswith("_")
            if isinstance(node.value, ast.Name) and node.value.id == "rltemp":
                assert node.attr in rltemp.__all__


def test_a_session_leaves_no_module_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "own-rule.md"
    (section, *_) = sections(page)
    monkeypatch.chdir(tmp_path)
    with Session(section, tmp_path) as session:
        session.run()
        assert "my_rules" in sys.modules
    assert "my_rules" not in sys.modules
