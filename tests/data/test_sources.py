"""Where data comes from: disjoint parts, exact statistics, a clear word for what cannot be used."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from support.pictures import write_folder

from rltemp.data import image_folder
from rltemp.data.dataset import Dataset, Split
from rltemp.data.sources import DATASETS, load_dataset
from rltemp.data.splits import split_pool
from rltemp.errors import BadInputError

SMALL = {"train": {"ape": 4, "bat": 3}, "test": {"ape": 1, "bat": 2}}
TABLES = ["wine", "breast_cancer", "iris"]


def parts(data: Dataset) -> list[Split]:
    return [data.train, data.probe, data.validation, data.test]


def sizes(data: Dataset) -> list[int]:
    return [len(part) for part in parts(data)]


def rows(part: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in part.inputs]


def labelled_rows(data: Dataset) -> list[tuple[bytes, int]]:
    return [pair for part in parts(data) for pair in zip(rows(part), part.labels.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected", "kind"),
    [
        ("digits", (1, 8, 8), 10, [1000, 200, 200, 397], np.uint8),
        ("wine", (13, 1, 1), 3, [88, 27, 27, 36], np.float32),
        ("breast_cancer", (30, 1, 1), 2, [284, 86, 86, 113], np.float32),
        ("iris", (4, 1, 1), 3, [72, 24, 24, 30], np.float32),
    ],
)
def test_bundled_data_come_once_with_their_labels_in_parts_of_known_sizes(name, shape, classes, expected, kind):
    data = load_dataset(name, split_seed=3)
    assert (data.name, data.image_shape, data.num_classes, data.augment) == (name, shape, classes, False)
    assert sizes(data) == expected
    columns, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    known = [(row.tobytes(), int(label)) for row, label in zip(columns.astype(kind), labels, strict=True)]
    assert sorted(labelled_rows(data)) == sorted(known)


@pytest.mark.parametrize("name", TABLES)
def test_every_part_of_a_table_has_its_share_of_every_class(name: str) -> None:
    data = load_dataset(name, split_seed=1)
    counts = torch.stack([part.labels.bincount(minlength=data.num_classes) for part in parts(data)])
    expected = torch.tensor([0.5, 0.15, 0.15, 0.2])[:, None] * counts.sum(0)
    # Each held-out part is rounded to whole samples; training has what the three leave.
    assert ((counts - expected).abs() <= torch.tensor([1.5, 0.5, 0.5, 0.5])[:, None] + 1e-3).all()
    assert data.train.labels.tolist() != sorted(data.train.labels.tolist())


@pytest.mark.parametrize("spec", ["digits", *TABLES, "synthetic"])
def test_images_or_columns_are_standardised_on_the_training_part(spec: str) -> None:
    data = load_dataset(spec)
    columns = data.normalise(data.train.inputs).transpose(0, 1).flatten(1).double()
    zeros = torch.zeros(len(columns)).double()
    torch.testing.assert_close(columns.mean(1), zeros, atol=1e-4, rtol=0)
    torch.testing.assert_close(columns.std(1, correction=0), zeros + 1, atol=1e-4, rtol=0)


def test_a_synthetic_table_has_known_sizes_and_options_in_its_name() -> None:
    data = load_dataset("synthetic")
    assert sizes(data) == [2000, 400, 400, 2000]
    assert (data.name, data.image_shape, data.num_classes, data.augment) == ("synthetic", (32, 1, 1), 10, False)
    assert len(set(labelled_rows(data))) == 4800
    for part in parts(data):
        # About as many of each class, though the parts are cut at random: a tenth each, give or take a half.
        assert (part.labels.bincount(minlength=10) > len(part) / 20).all()
    other = load_dataset("synthetic:classes=20,features=64")
    assert (other.name, other.num_classes) == ("synthetic:classes=20,features=64", 20)
    assert other.image_shape == (64, 1, 1)
    assert other.test.labels.unique().tolist() == list(range(20))
    assert load_dataset("synthetic:4").num_classes == 4


def test_separation_moves_the_classes_apart_and_noise_draws_labels_anew() -> None:
    def nearest_centre(spec: str) -> float:
        """Accuracy of the nearest class centre, a classifier with nothing to tune."""
        data = load_dataset(spec)
        train, test = (data.normalise(part.inputs).flatten(1) for part in (data.train, data.test))
        centres = torch.stack([train[data.train.labels == label].mean(0) for label in range(data.num_classes)])
        return float((torch.cdist(test, centres).argmin(1) == data.test.labels).float().mean())

    apart = nearest_centre("synthetic:separation=5,noise=0")
    assert apart > nearest_centre("synthetic:noise=0") + 0.1
    # Half of the labels are drawn from all ten classes: a twentieth of all stay right by luck.
    assert nearest_centre("synthetic:separation=5,noise=0.5") == pytest.approx(0.55 * apart, abs=0.05)


@pytest.mark.parametrize("spec", ["digits", "toy", *TABLES, "synthetic"])
def test_the_split_depends_on_the_split_seed_alone(spec: str) -> None:
    torch.manual_seed(0)
    first = load_dataset(spec, split_seed=1)
    torch.manual_seed(1)
    same, other = load_dataset(spec, split_seed=1), load_dataset(spec, split_seed=2)
    assert torch.equal(first.test.inputs, same.test.inputs)
    assert torch.equal(first.test.labels, same.test.labels)
    assert not torch.equal(first.test.inputs, other.test.inputs)


def test_a_pool_is_split_class_by_class_and_loses_no_sample() -> None:
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 3)[torch.randperm(163)]
    pool = Split(torch.arange(163, dtype=torch.uint8).view(163, 1, 1, 1).expand(-1, 1, 8, 8), labels)
    data = split_pool("pool", pool, pool, 3, 0)
    # 5 % of 100, 60 and 3 samples are 5, 3 and, rounded up to one, 1.
    assert data.probe.labels.bincount().tolist() == data.validation.labels.bincount().tolist() == [5, 3, 1]
    assert data.train.labels.bincount().tolist() == [90, 54, 1]
    seen = torch.cat([part.inputs[:, 0, 0, 0] for part in (data.train, data.probe, data.validation)])
    assert sorted(seen.tolist()) == list(range(163))
    for part in (data.train, data.probe, data.validation):
        assert torch.equal(labels[part.inputs[:, 0, 0, 0].long()], part.labels)
    grey = Split(torch.full((40, 1, 8, 8), 7, dtype=torch.uint8), torch.arange(40) % 2)
    constant = split_pool("grey", grey, grey, 2, 0)
    assert (constant.normalise(constant.train.inputs) == 0).all()


def test_parts_of_a_pool_are_not_sorted_by_class() -> None:
    pool = Split(torch.zeros(2000, 1, 8, 8, dtype=torch.uint8), torch.arange(2000) // 200)
    data = split_pool("pool", pool, pool, 10, 0)
    assert len(set(data.probe.labels[:20].tolist())) > 5
    other = split_pool("pool", pool, pool, 10, 1)
    assert not torch.equal(data.probe.labels, other.probe.labels)


def write_cifar(root: Path) -> None:
    """CIFAR-10 in torchvision's format on disk, with 100 training and 20 test images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        pixels[:, 0] = np.arange(20) % 10  # the first red pixel tells the class
        batch = {"data": pixels, "labels": [int(pixel) for pixel in pixels[:, 0]]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))


def test_cifar_takes_probe_and_validation_from_the_official_training_part(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    monkeypatch.setenv("RLTEMP_DATA", str(tmp_path))
    data = load_dataset("cifar10")
    # 10 images of a class: 5 % would be half of one, so one each.
    assert sizes(data) == [80, 10, 10, 20]
    assert (data.image_shape, data.num_classes, data.augment) == ((3, 32, 32), 10, True)
    for part in parts(data):
        assert torch.equal(part.inputs[:, 0, 0, 0].long(), part.labels)
    assert 100 < data.mean.min() < data.mean.max() < 150
    everything = [row for part in (data.train, data.probe, data.validation) for row in rows(part)]
    assert len(set(everything)) == 100
    assert sizes(load_dataset("cifar10", root=tmp_path)) == sizes(data)


def test_a_failed_download_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(BadInputError, match=r"no route to host.*cifar-100-python.tar.gz.*RLTEMP_DATA") as caught:
        load_dataset("cifar100", root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_of_images_is_read_whole_and_as_rgb(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rgb", {"train": {"ape": 40, "bat": 20}, "test": {"ape": 2, "bat": 1}})
    data = load_dataset(f"imagefolder:{folder}")
    assert sizes(data) == [36 + 18, 3, 3, 3]
    assert (data.name, data.image_shape, data.num_classes) == (f"imagefolder:{folder}", (3, 8, 9), 2)
    assert data.test.labels.tolist() == [0, 0, 1]
    pixels = np.asarray(Image.open(folder / "test" / "bat" / "000.png"))
    assert np.array_equal(data.test.inputs[2].permute(1, 2, 0).numpy(), pixels)
    grey = load_dataset(f"imagefolder:{write_folder(tmp_path / 'grey', SMALL, mode='L')}")
    assert torch.equal(grey.test.inputs[:, 0], grey.test.inputs[:, 2])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_folder_is_decoded_by_as_many_threads_as_torch_may_use(tmp_path, monkeypatch, threads):
    workers, meeting, read = set[str](), threading.Barrier(threads), image_folder._read

    def watched(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            workers.add(threading.current_thread().name.rpartition("_")[2])
            meeting.wait(30)  # for ever, with fewer threads
        return read(*arguments)

    monkeypatch.setattr(image_folder, "_read", watched)
    counts, before = {"train": {"ape": 3, "bat": 3}, "test": {"ape": 1, "bat": 2}}, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        load_dataset(f"imagefolder:{write_folder(tmp_path, counts)}")
    finally:
        torch.set_num_threads(before)
    assert workers == {str(number) for number in range(threads)}


def test_a_folder_that_cannot_be_used_is_answered_with_its_path(tmp_path: Path) -> None:
    def refused(name: str, match: str) -> None:
        with pytest.raises(BadInputError, match=match):
            load_dataset(f"imagefolder:{tmp_path / name}")

    refused("nowhere", "no folder .*nowhere; needed: PATH/train")
    write_folder(tmp_path / "no_test", {"train": SMALL["train"]})
    refused("no_test", "no folder .*no_test.test; needed")
    for part in ("train", "test"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    refused("empty", "empty.train holds no folder of a class; needed: ")
    write_folder(tmp_path / "no_images", {"train": {"ape": 4, "bat": 0}, "test": SMALL["test"]})
    refused("no_images", "no_images.train: no picture in bat")
    write_folder(tmp_path / "classes", {"train": {"ape": 4, "bat": 3}, "test": {"ape": 1, "cat": 1}})
    refused("classes", r"only in train/: \['bat'\], only in test/: \['cat'\]")
    write_folder(tmp_path / "scarce", {"train": {"ape": 4, "bat": 2}, "test": SMALL["test"]})
    refused("scarce", "'bat' has only 2 images")
    write_folder(tmp_path / "single", {"train": {"ape": 4}, "test": {"ape": 2}})
    refused("single", "needed are 2 classes.*got 1")


def test_an_image_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, SMALL)
    odd = folder / "test" / "bat" / "001.png"
    Image.new("RGB", (5, 7)).save(odd)
    with pytest.raises(BadInputError, match=r"001.png has 5 x 7 pixels, the first training image 9 x 8"):
        load_dataset(f"imagefolder:{folder}")
    odd.write_bytes(b"no image")
    with pytest.raises(
        BadInputError, match=r"image 2 of 3: cannot read the image .*test.bat.001\.png: .*Replace"
    ) as error:
        load_dataset(f"imagefolder:{folder}")
    assert error.value.exit_code == 2
    whole = (folder / "train" / "ape" / "000.png").read_bytes()
    odd.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match=r"cannot read the image .*test.bat.001.png"):
        load_dataset(f"imagefolder:{folder}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digitz", "unknown task 'digitz': did you mean 'digits'"),
        ("digits:8", "'digits' takes no option; got '8'"),
        ("toy:8", "'toy' takes no option"),
        ("characters:8", "'characters' takes no option"),
        ("cifar10:8", "'cifar10' takes no option"),
        ("wine:8", "'wine' takes no option"),
        ("synthetic:clases=8", "unknown option of 'synthetic' 'clases': did you mean 'classes'"),
        ("synthetic:classes=1", "synthetic: classes must be a whole number, 2 to 100; got 1"),
        ("synthetic:classes=2.5", "synthetic: classes must be a whole number, 2 to 100; got 2.5"),
        ("synthetic:classes=true", "synthetic: classes must be a whole number"),
        ("synthetic:classes=ten", "synthetic: classes must be a whole number, 2 to 100; got 'ten'"),
        ("synthetic:features=1001", "synthetic: features must be a whole number, 2 to 1000; got 1001"),
        ("synthetic:features=6", "synthetic: 6 features have room for 8 classes; got 10. Give fewer"),
        ("synthetic:noise=1.5", "synthetic: noise is a fraction, 0 to 1; got 1.5"),
        ("synthetic:separation=0", "synthetic: separation must be finite and above 0; got 0"),
        ("imagefolder", "needs a folder, as in imagefolder:PATH"),
    ],
)
def test_a_wrong_name_or_option_is_refused(spec: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_dataset(spec)
    assert set(DATASETS) == {"digits", *TABLES, "synthetic", "toy", "characters", "cifar10", "cifar100", "imagefolder"}


@pytest.mark.parametrize("spec", ["digits", "wine", "synthetic:classes=5", "cifar10", "imagefolder:."])
def test_a_library_that_does_not_import_is_one_clear_error(spec, tmp_path, monkeypatch):
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("rltemp.optional_imports.importlib.import_module", broken)
    with pytest.raises(BadInputError, match=f"task '{spec.partition(':')[0]}' needs .*nms does not exist"):
        load_dataset(spec, root=tmp_path)
