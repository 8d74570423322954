from __future__ import annotations

import platform

import numpy as np
import pytest

import rltemp
from rltemp.io.versions import processor, versions


def test_versions_name_what_is_installed_and_leave_out_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.io.versions.PACKAGES", ("numpy", "no-such-package-at-all"))
    expected = {"python": platform.python_version(), "rltemp": rltemp.__version__, "numpy": np.__version__}
    assert versions() == expected


def test_the_processor_has_a_name_on_one_line() -> None:
    assert processor().strip()
    assert "\n" not in processor()
