"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write


def test_the_bytes_arrive_and_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    atomic_write(tmp_path / "new" / "file", b"one")
    atomic_write(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_write_that_dies_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def die(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_at_sync: list[bool] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (named_at_sync.append((tmp_path / "file").exists()), sync(fd)))
    atomic_write(tmp_path / "file", b"data")
    assert named_at_sync[0] is False


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_gets_the_permissions_that_the_umask_gives_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    atomic_write(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_path_that_cannot_be_written_to_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"cannot write .*file.inside"):
        atomic_write(tmp_path / "file" / "inside", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInputError, match=r"cannot write .*folder"):
        atomic_write(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
