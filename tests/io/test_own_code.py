"""Code of a user's own is found by its name, run once, and its errors are one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import pytest

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.io.own_code import files_of, import_attribute, is_own, own_code, raised_by_own_code

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file of its own name in the working folder; its stem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def written(ending: str, text: str) -> str:
        stem = f"own_{tmp_path.name}_{ending}"
        (tmp_path / f"{stem}.py").write_text(text)
        return stem

    yield written
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_an_attribute_is_found_in_a_file_a_module_and_the_working_folder(write: Write, tmp_path: Path) -> None:
    stem = write("a", "number = 3\n")
    for place in (f"{stem}.py", str(tmp_path / f"{stem}.py"), stem):
        assert import_attribute(f"{place}:number") == 3
    assert import_attribute("math:tau") > 6


def test_a_file_runs_once_however_it_is_named(write: Write, tmp_path: Path) -> None:
    stem = write("a", "things = []\n")
    first = import_attribute(f"{stem}.py:things")
    assert import_attribute(str(tmp_path / f"{stem}.py:things")) is first
    assert import_attribute(f"{stem}:things") is first


def test_a_file_imports_what_lies_beside_it(write: Write) -> None:
    helper = write("helper", "number = 4\n")
    stem = write("a", f"from {helper} import number\n")
    assert import_attribute(f"{stem}.py:number") == 4


def test_another_process_gets_the_code_with_the_function(write: Write) -> None:
    stem = write("a", "factor = 3\n\n\ndef times(number):\n    return factor * number\n")
    sent = cloudpickle.dumps(import_attribute(f"{stem}.py:times"))
    del sys.modules[stem]
    assert cloudpickle.loads(sent)(4) == 12
    assert stem not in sys.modules


@pytest.mark.parametrize(
    ("spec", "own"),
    [
        ("my_nets.py:make", True),
        ("folder/my_nets.py:make", True),
        ("math:tau", True),
        ("os.path:join", True),
        ("mlp:16", False),
        ("mlp:8x4", False),
        ("digits", False),
        ("synthetic:classes=20", False),
        ("imagefolder:some/folder", False),
        ("no_such_module:make", False),
        ("no.such.module:make", False),
    ],
)
def test_names_of_code_are_told_from_other_names(spec: str, own: bool) -> None:
    assert is_own(spec) == own


def test_a_module_in_the_working_folder_is_ones_own(write: Write) -> None:
    assert is_own(f"{write('a', '')}:make")


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("", "make", "has no 'make'. Needed: module:attribute"),
        ("1 / 0\n", "make", "raised ZeroDivisionError: division by zero. --debug shows where"),
        ("def make(:\n", "make", "raised SyntaxError: "),
        ("import no_such_library\n", "make", "raised ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_can_be_mended(write: Write, text, attribute, message) -> None:
    stem = write("a", text)
    with pytest.raises(BadInputError) as caught:
        import_attribute(f"{stem}.py:{attribute}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if text:
        assert stem not in sys.modules


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.py:make", "no file missing.py; needed: file.py:attribute"),
        ("no_such_module:make", "cannot import 'no_such_module:make': No module named 'no_such_module'. Needed: "),
        ("math:make", "cannot import 'math:make': math has no 'make'"),
    ],
)
def test_what_is_not_there_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        import_attribute(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_the_name_of_a_loaded_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("number = 3\n")
    with pytest.raises(BadInputError, match="another module is named json already; give the file another name"):
        import_attribute(f"{tmp_path}/json.py:number")


def test_an_error_of_ones_own_code_is_one_line_with_its_cause() -> None:
    with pytest.raises(BadInputError) as caught, own_code("make_student"):
        raise KeyError("first line\nsecond line")
    assert str(caught.value) == r"make_student raised KeyError: 'first line\nsecond line'. --debug shows where"
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(BadInputError, match=r"make raised ValueError: first line\. --debug"), own_code("make"):
        raise ValueError("first line\nsecond line")


@pytest.mark.parametrize("error", [ArtifactRefusedError("a damaged file"), KeyboardInterrupt()])
def test_errors_that_say_it_already_and_interruptions_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, own_code("make"):
        raise error
    assert caught.value is error


def test_whose_code_raised_is_known_by_its_files(write: Write) -> None:
    stem = write("a", "def make():\n    return {}['key']\n")
    with pytest.raises(KeyError) as caught:
        import_attribute(f"{stem}.py:make")()
    assert raised_by_own_code(caught.value)
    assert files_of(caught.value)[-1].endswith(f"{stem}.py")
    with pytest.raises(KeyError) as other:
        {}["key"]
    assert not raised_by_own_code(other.value)
