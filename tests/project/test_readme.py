"""What the README and the reference pages say is what the code does: tags, commands, names, pictures."""

from __future__ import annotations

import hashlib
import re
import runpy

import pytest
from support.source import ROOT

import rltemp
from rltemp.cli.commands import COMMANDS
from rltemp.loading import SHIPPED
from rltemp.policy.policy_file import read_policy
from rltemp.rules.controls import CONTROLS
from rltemp.rules.published_methods import METHODS
from rltemp.training.tensorboard import TAGS

README = (ROOT / "README.md").read_text("utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120
    assert len(README.split()) <= 1200


def test_what_the_readme_and_contributing_link_to_is_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text("utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / link).is_file(), link


def test_the_test_command_of_the_readme_is_the_one_that_the_checks_run() -> None:
    assert "```bash\nmake test\n```" in README
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "make test"


def test_the_picture_is_the_one_that_its_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "how_it_works.py"))
    assert script["PICTURE"].read_text("utf-8") == script["drawing"]()


def test_the_table_of_tags_is_the_table_in_the_code() -> None:
    rows = re.findall(r"^\| `([a-z]+/[a-z0-9_]+)` \| (.+) \|$", page("tensorboard.md"), re.MULTILINE)
    assert dict(rows) == TAGS


def test_the_table_of_commands_is_the_one_of_the_code() -> None:
    rows = re.findall(r"^\| `rltemp ([a-z -]+)` \| (.+) \|$", page("reference/command-line.md"), re.MULTILINE)
    assert [name for name, _ in rows] == [*COMMANDS]
    assert all(text.startswith(COMMANDS[name].purpose) for name, text in rows)


def test_the_page_of_names_has_every_method_and_control() -> None:
    text = page("names.md")
    missing = [name for name in METHODS if f"`{name}`" not in text] + [
        name for name in CONTROLS if f"`{name}:`" not in text
    ]
    assert missing == []


@pytest.mark.parametrize("name", rltemp.__all__)
def test_the_reference_has_every_public_name(name: str) -> None:
    text = page("reference/python.md")
    assert re.search(rf"^::: rltemp\.\S+\.{name}$", text, re.MULTILINE) or name.endswith("Error")
    assert "::: rltemp.errors\n" in text


def test_the_model_card_is_of_the_file_that_is_shipped() -> None:
    policy, card = read_policy(SHIPPED["universal"]), page("universal.md")
    made, action = policy.manifest.provenance, policy.manifest.action
    sizes = [len(policy.manifest.features), action.size]
    assert f"from {sizes[0]} features to {sizes[1]} numbers: {sizes[1] * (sizes[0] + 1)} weights" in card
    assert f"temperatures x {action.ratio:g}^a, within [{action.minimum:g}, {action.maximum:g}]" in card
    assert f"the sample's weight x {action.weight_ratio:g}^a" in card
    assert f"`{policy.manifest.reference}`" in card
    assert f"{made['updates']} updates of {made['students']} students, seed {made['seed']}" in card
    assert f"rltemp {policy.manifest.created_with['rltemp']}" in card
    assert hashlib.sha256(SHIPPED["universal"].read_bytes()).hexdigest() in card
