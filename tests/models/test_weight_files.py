"""Weight files: what is written is read back, and what does not belong is refused before anything changes."""

from __future__ import annotations

import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support import hostile
from torch import nn

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.models import weight_files as weights
from rltemp.models.networks import seeded_model
from rltemp.models.weight_files import load_weights, read_tensor, save_weights, tensors_sha256


def network(seed: int) -> nn.Module:
    return seeded_model("resnet8", (3, 8, 8), 5, seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def refused(path: Path, match: str) -> None:
    """The file is refused in one line, and the network keeps its weights."""
    target = network(1)
    with pytest.raises(ArtifactRefusedError, match=match) as caught:
        load_weights(target, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert same(target, network(1))


def save(state: dict[str, Any], path: Path) -> Path:
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def test_weights_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    source(torch.randn(4, 3, 8, 8))  # moves the running statistics
    path = tmp_path / "new folder" / "teacher.safetensors"
    save_weights(source, path, {"task": "digits", "seed": "0"})
    assert load_weights(target, path) == {"task": "digits", "seed": "0"}
    assert same(source, target)
    assert load_weights(target, save(network(0).state_dict(), path)) == {}
    half = network(0).half()
    load_weights(target, save(half.state_dict(), path))
    assert torch.equal(target.get_parameter("fc.bias"), half.get_parameter("fc.bias").float())
    assert target.get_parameter("fc.bias").dtype == torch.float32


def test_tied_and_strided_weights_can_be_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = nn.Parameter(tied[0].weight.detach().t())
    save_weights(tied, tmp_path / "w.safetensors", {})
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other[1].weight, other[0].weight.t())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "accuracy": 0.7},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "data parallel"],
)
def test_torch_files_of_the_usual_forms_are_read(tmp_path, suffix, wrap):
    source, target = network(0), network(1)
    torch.save(wrap(source.state_dict()), tmp_path / f"w{suffix}")
    assert load_weights(target, tmp_path / f"w{suffix}") == {}
    assert same(source, target)


SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])


@SUFFIXES
def test_what_does_not_fit_the_network_is_listed_as_expected_and_found(tmp_path: Path, suffix: str) -> None:
    state, path = network(0).state_dict(), tmp_path / f"w{suffix}"
    integers = {name: value.long() for name, value in state.items()}
    refused(save(integers, path), r"conv1.weight: expected float \[16, 3, 3, 3\], found integer")
    state |= {"fc.weight": torch.zeros(7, 64), "extra": torch.zeros(2)}
    del state["conv1.weight"]
    save(state, path)
    refused(path, r"fc.weight: expected float \[5, 64\], found float \[7, 64\]")
    refused(path, r"conv1.weight: expected float \[16, 3, 3, 3\], found nothing")
    refused(path, r"extra: expected nothing, found float \[2\]")
    refused(save(nn.Linear(2, 2).state_dict(), path), r"^([^;]*expected[^;]*;){5} and \d\d more")


@SUFFIXES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_the_network_are_refused(tmp_path: Path, value: float, suffix: str) -> None:
    state = network(0).double().state_dict()
    state["layer3.0.bn2.running_var"][7] = value
    refused(save(state, tmp_path / f"w{suffix}"), "layer3.0.bn2.running_var holds numbers that are not finite")


@SUFFIXES
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save(network(0).state_dict(), tmp_path / f"w{suffix}")
    whole = path.read_bytes()
    for keep in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(keep * len(whole))])
        refused(path, "is not a")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    content = {**network(0).state_dict(), "fc.bias": hostile.Payload(marker)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w.pth", r"tensors alone \(it asks for the Python object (posix|nt)\.mkdir\)")
    assert not marker.exists()
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(hostile.Payload(marker)))
    refused(tmp_path / "bare.bin", "is not a torch file of tensors alone")
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(hostile.Payload(marker)))
    refused(tmp_path / "w.safetensors", "is not a safetensors file")
    assert not marker.exists()
    pickle.loads(pickle.dumps(hostile.Payload(marker)))
    assert marker.exists(), "the test's own code would not have run anyway"


def test_a_torch_too_old_to_read_such_files_safely_does_not_read_them(tmp_path, monkeypatch):
    torch.save(network(0).state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1"))
    refused(tmp_path / "w.pth", "torch 2.9.1 can be made to run code")


@pytest.mark.parametrize(
    "content",
    [
        *([1, 2], {}, {"state_dict": {"fc.bias": "text"}}, {3: torch.zeros(1)}, torch.zeros(3), None),
        {**network(0).state_dict(), "fc.weight": torch.zeros(5, 64).to_sparse()},
        {**network(0).state_dict(), "fc.weight": torch.zeros(5, 64, device="meta")},
    ],
    ids=["list", "empty", "text", "numbered", "tensor", "none", "sparse", "meta"],
)
def test_torch_files_that_hold_no_fitting_state_dict_are_refused(tmp_path: Path, content: Any) -> None:
    refused(save(content, tmp_path / "w.pt"), "holds no state dict|does not fit this network|is not a torch file")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b"not json!",
        struct.pack("<Q", 2) + b"{}" + b"x" * 100,
    ],
    ids=["empty", "short", "huge header", "no header", "a list", "no json", "bytes left over"],
)
def test_bytes_that_are_no_weight_file_are_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "is not a (safetensors|torch) file")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.truncate(weights.MAX_FILE_BYTES + 1)  # takes no space on disk
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    refused(tmp_path / "w.safetensors", "4,294,967,297 bytes")


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "w.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pt").stat().st_size < 10_000
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 1_000_000)
    refused(tmp_path / "w.pt", r"holds 4,\d\d\d,\d\d\d bytes")


def test_a_missing_file_and_an_unknown_suffix_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "w.zip").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    for name, match in (("no.pt", "no weight file"), ("folder.pt", "no weight file"), ("w.zip", "suffix '.zip'")):
        with pytest.raises(BadInputError, match=match) as caught:
            load_weights(network(0), tmp_path / name)
        assert not isinstance(caught.value, ArtifactRefusedError)
    with pytest.raises(BadInputError, match=r"written as \.safetensors"):
        save_weights(network(0), tmp_path / "w.pt", {})


def test_a_bit_that_flipped_in_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(0), path, {"task": "digits"})
    good = path.read_bytes()
    begin = 8 + int.from_bytes(good[:8], "little")
    for bit in random.Random(0).sample(range(8 * begin, 8 * len(good)), 30):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refused(path, "SHA-256 mismatch .stated .*copy it again|not finite")


def test_the_sum_covers_names_formats_and_shapes() -> None:
    one = {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64), "c": torch.zeros((), dtype=torch.bool)}
    assert tensors_sha256(one) == tensors_sha256(dict(reversed(one.items())))
    others = [
        {**one, "a": torch.ones(3, 2)},
        {**one, "a": torch.ones(2, 3).double()},
        {**one, "b": torch.ones(1, dtype=torch.int64)},
        {"d" if name == "a" else name: value for name, value in one.items()},
        {**one, "e": torch.zeros(0)},
    ]
    assert len({tensors_sha256(tensors) for tensors in [one, *others]}) == 6


def test_what_takes_for_ever_to_hash_or_all_memory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(hostile.tuple_bomb())
    refused(tmp_path / "w.pth", "uses tuples again more than 32 times")
    (tmp_path / "w.pth").write_bytes(hostile.memory_bomb())
    refused(tmp_path / "w.pth", r"asks for the Python object (__builtin__|builtins)\.bytearray")
    (tmp_path / "w.pth").write_bytes(hostile.directory_bomb())
    refused(tmp_path / "w.pth", "the archive's directory has 14,")


def test_a_checkpoint_with_the_usual_things_beside_the_weights_is_read(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    optimizer = torch.optim.AdamW([{"params": [value]} for value in source.parameters()], lr=0.1)
    source(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": source.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.7, "name": "x"}
    for zipped in (True, False):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        load_weights(target, tmp_path / "w.pth")
        assert same(source, target)


# One tensor, as of a teacher's logits


def write(values: Any, path: Path) -> Path:
    """A file of one value, by the suffix of its path."""
    if path.suffix == ".npy":
        np.save(path, values, allow_pickle=True)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(values if isinstance(values, dict) else {"logits": values}, path)
    else:
        torch.save(values, path)
    return path


@pytest.mark.parametrize("suffix", weights.LOGITS_SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_tensor_is_read_from_every_kind_of_file_as_float32(suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    file = write(values.numpy() if suffix == ".npy" else values, tmp_path / f"logits{suffix}")
    found = read_tensor(file, "logits")
    assert found.dtype == torch.float32
    assert torch.equal(found, values.float())


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("whole.npy", np.zeros((2, 3), np.int64), "must hold one tensor of finite floats"),
        ("code.npy", np.array([print], object), "cannot be read: "),
        ("nan.npy", np.full((2, 3), np.nan), "must hold one tensor of finite floats"),
        ("long.npy", np.full((2, 3), 1e300), "must hold one tensor of finite floats"),
        ("list.pt", [torch.zeros(2, 3)], "must hold one tensor of finite floats"),
        ("code.pt", {"run": print}, "cannot be read: "),
        ("endless.pt", torch.full((2, 3), torch.inf), "must hold one tensor of finite floats"),
        ("whole.safetensors", torch.zeros(2, 3, dtype=torch.int64), "must hold one tensor of finite floats"),
        ("none.safetensors", {}, "must hold one tensor of finite floats"),
        ("two.safetensors", {"a": torch.zeros(2), "b": torch.zeros(2)}, "must hold one tensor of finite floats"),
    ],
)
def test_what_is_no_tensor_of_finite_floats_is_refused(name: str, values: Any, message: str, tmp_path: Path) -> None:
    file = write(values, tmp_path / name)
    with pytest.raises(ArtifactRefusedError) as caught:
        read_tensor(file, "logits")
    assert str(caught.value).startswith(f"logits {file} {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", weights.LOGITS_SUFFIXES)
def test_a_damaged_or_missing_tensor_file_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"logits{suffix}"
    with pytest.raises(BadInputError, match=r"logits .*: no such file"):
        read_tensor(file, "logits")
    file.write_bytes(b"\x00garbage" * 5)
    with pytest.raises(ArtifactRefusedError, match="cannot be read: ") as caught:
        read_tensor(file, "logits")
    assert "\n" not in str(caught.value)
