"""Pictures that stay in their files: who reads them, and when, changes nothing of what is read."""

from __future__ import annotations

import itertools
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.pictures import write_folder

from rltemp.data.batches import Batches
from rltemp.data.dataset import Batch, Dataset
from rltemp.data.item_reader import PictureReader
from rltemp.data.sources import load_dataset
from rltemp.errors import BadInputError
from rltemp.pictures.settings import Pictures

CROPPED = Pictures(image_size=16, resize=18, augment="crop+mirror", normalise="half")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes."""
    root = tmp_path_factory.mktemp("pictures") / "mixed"
    for number, size in enumerate([(20, 30), (40, 25), (17, 16)]):
        part = write_folder(
            root.with_name(f"part{number}"), {"train": {"a": 9, "b": 8}, "test": {"a": 2, "b": 2}}, size
        )
        for file in part.rglob("*.png"):
            place = root / file.relative_to(part).with_stem(f"{number}-{file.stem}")
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    return root


def loaded(folder: Path, workers: int = 0, pictures: Pictures = CROPPED) -> Dataset:
    return load_dataset(f"imagefolder:{folder}", pictures=pictures, workers=workers)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)


def run(data: Dataset, seeds: int | list[int], steps: range, rows: slice = slice(None)) -> list[Batch]:
    batches = Batches(data, data.train, seeds, 8, rows=rows)
    return [batches.at(step, batches.positions(step)) for step in steps]


def test_a_folder_of_several_sizes_becomes_squares_in_memory_or_from_files(folder: Path) -> None:
    kept = loaded(folder, pictures=replace(CROPPED, augment="none"))
    read = loaded(folder)
    assert isinstance(read.train.inputs, PictureReader)
    assert not kept.train.reads
    assert kept.image_shape == read.image_shape == (3, 16, 16)
    for part in ("train", "probe", "validation", "test"):
        one, other = (getattr(data, part) for data in (kept, read))
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.inputs, other.batch(torch.arange(len(other))).inputs)
        inputs = [torch.cat([one.clone() for one in data.in_order(getattr(data, part), 5)]) for data in (kept, read)]
        assert torch.equal(*inputs)
        assert inputs[0].abs().max() <= 1
        assert len({one.data_ptr() for one in read.in_order(getattr(read, part), 2)}) == 1  # memory does not grow


def test_workers_and_a_start_in_the_middle_change_no_bit(folder: Path) -> None:
    here = run(loaded(folder), 3, range(12))
    there = loaded(folder, workers=2)
    assert all(map(same, here, run(there, 3, range(12))))
    assert all(map(same, here[7:9], run(there, 3, range(7, 9))))
    views = {batch.inputs.numpy().tobytes() for batch in here}
    assert len(views) == 12


def test_workers_end_with_an_epoch(folder: Path) -> None:
    data = loaded(folder, workers=1)
    batches = Batches(data, data.train, 0, 8)
    for step in range(batches.an_epoch + 1):
        batches.at(step, batches.positions(step))
        assert bool(multiprocessing.active_children()) == (step != batches.an_epoch - 1)


def test_a_worker_of_a_pool_starts_no_processes_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = run(loaded(folder), 3, range(2))
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "a parent")
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter", None)
    assert all(map(same, here, run(loaded(folder, workers=2), 3, range(2))))


def test_a_step_that_is_asked_for_again_is_the_same(folder: Path) -> None:
    data = loaded(folder)
    batches = Batches(data, data.train, 0, 8)
    first, second = (batches.at(step, batches.positions(step)) for step in (4, 5))
    assert same(second, batches.at(5, batches.positions(5)))
    assert same(first, batches.at(4, batches.positions(4)))


def test_each_student_and_each_process_sees_what_it_would_see_alone(folder: Path) -> None:
    data = loaded(folder)
    together = run(data, [4, 2], range(3))
    for place, seed in enumerate((4, 2)):
        alone = run(data, seed, range(3))
        for batch, own in zip(together, alone, strict=True):
            assert torch.equal(batch.inputs[place], own.inputs)
            assert torch.equal(batch.labels[place], own.labels)
    whole = run(data, 2, range(3))
    shares = [run(data, 2, range(3), rows) for rows in (slice(0, 4), slice(4, 8))]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert all(torch.equal(batch.labels, part.labels) for part in parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_in_the_meantime_is_named_in_one_line(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    counts = {"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}}
    root = write_folder(tmp_path / "damaged", counts)
    data = loaded(root, workers)
    for file, _ in zip((root / "train").rglob("*.png"), itertools.count()):
        file.write_bytes(b"no picture")
    with pytest.raises(BadInputError, match=r"cannot read the image .*\.png: .*Replace or remove it") as caught:
        run(data, 0, range(1))
    assert "\n" not in str(caught.value)


def test_a_folder_that_fits_no_memory_is_read_from_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = replace(CROPPED, augment="shift+mirror")
    assert not loaded(folder, pictures=square).train.reads
    monkeypatch.setattr("rltemp.data.image_folder.MOST_BYTES", 1000)
    data = loaded(folder, pictures=square)
    assert data.train.reads
    assert (data.augment, data.augmentation) == (True, ("shift", "mirror"))
    [first], [other] = run(data, 0, range(1)), run(data, 1, range(1))
    assert not same(first, other)


def test_what_pillow_ignores_in_a_file_is_not_warned_of(tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("P").save(tmp_path / "clear.png", transparency=bytes([0, 128] * 128))
    assert PictureReader.of([str(tmp_path / "clear.png")], CROPPED).read(torch.arange(1)).shape == (1, 3, 16, 16)


def test_a_million_names_take_one_array(tmp_path: Path) -> None:
    names = [f"{tmp_path}/ä{number}.png" for number in range(3)]
    reader = PictureReader.of(names, CROPPED)
    assert [reader._item(place) for place in range(3)] == names
    both = reader.take(torch.tensor([2])).and_then(PictureReader.of(names[:1], CROPPED))
    assert [reader_place for reader_place, _ in both.request(torch.arange(2))] == [2, 3]
    Image.new("RGB", (20, 20)).save(names[0])
    assert both.read(torch.tensor([1])).shape == (1, 3, 16, 16)
