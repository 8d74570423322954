"""Folders and teachers that cannot be used: one line and exit code 2 or 3, and nothing is trained or left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import write_folder

from rltemp.cli.main import main
from rltemp.data.tasks import load_task
from rltemp.models.networks import seeded_model
from rltemp.training.preparation import fitted, prepare

COUNTS = {"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}}


def unreadable(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_text(f"{file} is no picture")


def one_pixel(folder: Path) -> None:
    Image.new("RGB", (1, 1)).save(folder / "test/b/001.png")


def some_floats(folder: Path) -> None:
    Image.new("F", (9, 8)).save(folder / "train/b/009.tif")


def empty_class(folder: Path) -> None:
    for file in (folder / "train/b").iterdir():
        file.unlink()


def larger_teacher(folder: Path) -> None:
    torch.save(seeded_model("mlp:8", (3, 16, 16), 2, 0).state_dict(), folder / "teacher.pth")


def no_checkpoint(folder: Path) -> None:
    (folder / "teacher.pth").write_bytes(b"PK\x03\x04 no archive")


def as_it_is(folder: Path) -> None:
    pass


def halves(folder: Path) -> None:
    """Pictures of class a are bright on the left, those of b on the right."""
    generator = np.random.default_rng(0)
    for place in sorted(folder.rglob("*.png")):
        pixels = generator.integers(0, 100, (8, 8, 3), np.uint8)
        pixels[:, slice(0, 4) if place.parent.name == "a" else slice(4, 8)] += 150
        Image.fromarray(pixels).save(place)


@pytest.mark.parametrize(("augment", "accuracy"), [("none", 1.0), ("shift", 1.0), (None, 0.5)])
def test_classes_that_mirror_each_other_are_told_apart_without_mirroring(
    augment: str | None, accuracy: float, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "pictures", {"train": {"a": 20, "b": 20}, "test": {"a": 8, "b": 8}})
    halves(folder)
    task = load_task(f"imagefolder:{folder}", teacher="mlp:16", student="mlp:4", teacher_epochs=20, augment=augment)
    found = prepare(fitted(task, 36)).teacher_accuracy
    assert found == accuracy if accuracy == 1.0 else found <= accuracy
    assert ("--augment none" in caplog.text) == (accuracy < 1.0)


TEACHER = ("--teacher-weights", "FOLDER/teacher.pth")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (unreadable, (), "cannot read the image"),
        (unreadable, ("--image-size", "8"), "cannot read the image"),
        (one_pixel, (), "it has 1 x 1 pixels; needed: 2 x 2 or more"),
        (one_pixel, ("--image-size", "8", "--augment", "crop"), "it has 1 x 1 pixels; needed: 2 x 2 or more"),
        (some_floats, ("--image-size", "8", "--augment", "crop"), "it holds floats (mode F)"),
        (as_it_is, ("--image-size", "0"), "image_size must be"),
        (as_it_is, ("--image-size", "8", "--resize", "4"), "resize 4 needs an image_size of at most as much; got 8"),
        (as_it_is, ("--data-workers", "-1"), "data_workers must be a whole number of 0 or more; got -1"),
        (as_it_is, ("--augment", "turn"), "unknown augmentation 'turn'"),
        (as_it_is, ("--normalise", "teacher"), "nothing beside mlp:8 says how its pictures were normalised"),
        (empty_class, (), "train: no picture in b; every class needs one"),
        (larger_teacher, TEACHER, r"expected float [8, 216], found float [8, 768]"),
        (no_checkpoint, TEACHER, "is not a torch file of tensors alone"),
    ],
)
def test_a_folder_or_teacher_that_cannot_be_used_is_refused_in_a_line(
    change: Callable[[Path], None], words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "pictures", COUNTS, size=(9, 8))
    change(folder)
    own = [word.replace("FOLDER", str(folder)) for word in words]
    task = ["--task", f"imagefolder:{folder}", "--teacher", "mlp:8", "--student", "mlp:4"]
    with pytest.raises(SystemExit) as end:
        main(["distill", *task, *own, "--epochs", "1", "--out", str(tmp_path / "out")])
    assert end.value.code in (2, 3)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rltemp: ")]
    assert message in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache" / "teachers").exists()
