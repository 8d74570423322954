"""What a folder of pictures holds: what is left out is said, what is there twice is found."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.pictures import write_folder

from rltemp.data.sources import load_dataset
from rltemp.errors import BadInputError

COUNTS = {"train": {"ape": 6, "bat": 5}, "test": {"ape": 2, "bat": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", COUNTS)


def sizes(folder: Path) -> list[int]:
    data = load_dataset(f"imagefolder:{folder}")
    return [len(part) for part in (data.train, data.probe, data.validation, data.test)]


def test_further_suffixes_are_read_and_others_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (9, 8)).save(folder / "train/ape/x.gif")
    Image.new("RGB", (9, 8)).save(folder / "train/ape/y.JFIF", format="JPEG")
    for name in ("notes.txt", "raw.npy"):
        (folder / "train/bat" / name).write_text("no picture")
    assert sizes(folder) == [9, 2, 2, 4]
    [line] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "train: 2 files are left out" in line
    assert "bat/notes.txt, bat/raw.npy" in line


def test_dotted_folders_and_files_are_skipped(folder: Path) -> None:
    shutil.copytree(folder / "train/ape", folder / "train/.ipynb_checkpoints")
    shutil.copytree(folder / "train/ape", folder / "train/ape/.thumbnails")
    shutil.copy(folder / "train/ape/000.png", folder / "train/ape/._000.png")
    assert sizes(folder) == [7, 2, 2, 4]


def test_val_is_the_test_split_or_beside_one_the_validation_split(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "val")
    assert sizes(folder) == [9, 2, 4, 4]
    shutil.rmtree(folder / "test")
    assert sizes(folder) == [7, 2, 2, 4]
    (folder / "val").rename(folder / "validation")
    assert sizes(folder) == [7, 2, 2, 4]


def test_of_two_names_for_a_class_the_link_is_named(folder: Path) -> None:
    for name in ("aaa", "zzz"):
        (folder / "train" / name).symlink_to(folder / "train/bat", target_is_directory=True)
        with pytest.raises(BadInputError, match=f"train/{name} is a link to a folder .*train/bat.*Remove the link"):
            load_dataset(f"imagefolder:{folder}")
        (folder / "train" / name).unlink()
    (folder / "train/bat/up").symlink_to(folder, target_is_directory=True)
    with pytest.raises(BadInputError, match=r"train/bat/up is a link to a folder that is there already"):
        load_dataset(f"imagefolder:{folder}")


def test_a_test_folder_without_classes_is_left_out_beside_another(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "test").rename(folder / "val")
    (folder / "test").mkdir()
    shutil.copy(folder / "train/ape/000.png", folder / "test/unknown.png")
    assert sizes(folder) == [7, 2, 2, 4]
    assert "test is left out: it holds no folder of a class" in caplog.text


def test_test_pictures_that_are_training_pictures_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    load_dataset(f"imagefolder:{folder}")
    assert not caplog.records
    for number in range(2):
        shutil.copy(folder / f"train/ape/00{number}.png", folder / f"test/ape/copy{number}.png")
    load_dataset(f"imagefolder:{folder}")
    [line] = [record.getMessage() for record in caplog.records]
    assert "2 of 6 test pictures are training pictures as well" in line
    assert "test/ape/copy0.png" in line


def test_a_folder_without_pictures_or_a_class_without_any_is_refused(folder: Path) -> None:
    for file in (folder / "train/bat").iterdir():
        file.unlink()
    with pytest.raises(BadInputError, match=r"train: no picture in bat; every class needs one\. Remove the folder"):
        load_dataset(f"imagefolder:{folder}")
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(BadInputError, match=r"train holds no folder of a class; needed: .*train/<class>"):
        load_dataset(f"imagefolder:{folder}")
