"""Teachers as trainings leave them: prefixes, keys, suffixes, shards, and how their pictures were normalised."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rltemp.cli.dispatch import parse
from rltemp.data.task import Own
from rltemp.data.tasks import load_task
from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.models.library_networks import normalisation_beside
from rltemp.models.networks import seeded_model
from rltemp.models.state_dicts import fitting_names
from rltemp.models.weight_files import load_weights

State = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    return seeded_model("resnet8", (3, 8, 8), 5, seed)


def filled(path: Path) -> None:
    """The file fills a network with the weights of seed 0."""
    target = network(1)
    load_weights(target, path)
    state = target.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network(0).state_dict().items())


def wrapped(prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in network(0).state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module.student.", "backbone.", "module._orig_mod.model."]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_wraps_a_whole_file_is_taken_away(tmp_path: Path, prefix: str, suffix: str) -> None:
    path = tmp_path / f"teacher{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(wrapped(prefix), path)
    filled(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema"])
@pytest.mark.parametrize("name", ["best.pth.tar", "last.ckpt", "net.t7"])
def test_the_usual_keys_and_suffixes_are_read(tmp_path: Path, key: str, name: str) -> None:
    beside = {"epoch": 3, "optimizer": {"state": {}, "lr": 0.1}, "args": Namespace(lr=0.1, data="d", clip=None)}
    torch.save({key: wrapped("module."), **beside}, tmp_path / name)
    filled(tmp_path / name)


def test_keys_within_keys_and_counters_of_averaged_files_are_read(tmp_path: Path) -> None:
    old = {name: value for name, value in wrapped("").items() if not name.endswith("num_batches_tracked")}
    torch.save({"model": {"state_dict": old}}, tmp_path / "old.pth")
    filled(tmp_path / "old.pth")
    torch.save({"ema": {"module": wrapped("model.")}}, tmp_path / "deep.pth")
    filled(tmp_path / "deep.pth")
    torch.save({"n_averaged": torch.tensor(7), **wrapped("module.")}, tmp_path / "AVERAGED.PTH")
    filled(tmp_path / "AVERAGED.PTH")
    torch.save({name: value.bfloat16() for name, value in wrapped("").items()}, tmp_path / "half.pth")
    load_weights(network(1), tmp_path / "half.pth")


def test_a_prefix_that_a_networks_own_names_have_stays() -> None:
    own = nn.Sequential(nn.Linear(2, 2)).state_dict()
    assert fitting_names(own, own).keys() == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            wrapped("a.student.") | {"loss.x": torch.zeros(1)},
            r"begin with a \(\d+\), loss \(1\); those after a.student. fit",
        ),
        (wrapped("student.") | wrapped("teacher."), r"those after student\. or teacher\. fit: save these alone"),
        ({}, "the file holds no tensor"),
        ({"weights": {"a": 1}, "epoch": 3}, "no state dict, but the keys weights, epoch; needed .* model_state_dict"),
        ([torch.zeros(2)], "no state dict, but a list"),
    ],
)
def test_what_does_not_fit_shows_its_names_or_keys(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(ArtifactRefusedError, match=match) as caught:
        load_weights(network(1), tmp_path / "t.pth")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_file_that_only_claims_to_be_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.pth.tar").write_text("<html>404 Not Found</html>")
    with pytest.raises(ArtifactRefusedError, match=r"t\.pth\.tar is not a torch file"):
        load_weights(network(1), tmp_path / "t.pth.tar")


def sharded(folder: Path) -> Path:
    """Two shards and their index."""
    state = wrapped("")
    names = sorted(state)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, own in zip(files, (names[:5], names[5:]), strict=True):
        save_file({name: state[name] for name in own}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[place >= 5] for place, name in enumerate(names)}}))
    return index


def test_shards_are_found_from_their_index_and_from_one_of_them(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    filled(index)
    filled(tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"no weight file .*00001-of-00002"):
        load_weights(network(1), index)


@pytest.mark.parametrize("shard", ["../away.safetensors", "/etc/passwd", "other.bin", 3])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, shard: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": shard}}))
    with pytest.raises(ArtifactRefusedError, match="is no index of shards"):
        load_weights(network(1), index)


def written(name: str, content: Callable[[], Any]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_text(json.dumps(content()))
        return str(folder / "w.pth")

    return write


HALF, OTHER = {"mean": [0.5], "std": [0.25]}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 0.5]}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (written("config.json", lambda: HALF), "0.5/0.25"),
        (written("config.json", lambda: {"pretrained_cfg": HALF}), "0.5/0.25"),
        (written("preprocessor_config.json", lambda: OTHER), "0.1,0.2,0.3/1,1,0.5"),
    ],
    ids=["timm", "timm's hub", "transformers"],
)
def test_how_pictures_were_normalised_is_read_beside_the_weights(tmp_path, write, said) -> None:
    assert normalisation_beside(write(tmp_path)) == said


def test_where_nothing_says_how_pictures_were_normalised_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"nothing beside .* says how .*; give mean/deviation, imagenet or half"):
        normalisation_beside(str(tmp_path / "w.pth"))


def test_a_teacher_of_transformers_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no .*config\.json; needed: a folder that save_pretrained wrote"):
        load_task("digits", teacher=f"hf:{tmp_path}")


def test_a_network_of_timm_is_none_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps({"teacher": "timm:resnet18", "student": "timm:resnet10t"}))
    assert parse("distill", ["--config", str(tmp_path / "c.json")]).teacher == "timm:resnet18"
    task = load_task("digits", teacher="timm:resnet18", student="timm:resnet10t", teacher_weights="w.pth")
    assert (task.teacher, task.student, task.own) == ("timm:resnet18", "timm:resnet10t", Own())


def test_weights_beside_a_teacher_that_is_trained_are_refused() -> None:
    for teacher in (nn.Linear(64, 10), torch.zeros(2, 10)):
        with pytest.raises(BadInputError, match="is trained; got teacher_weights as well, leave them out"):
            load_task("digits", teacher=teacher, teacher_weights="w.pth")
    before = load_task("digits", teacher_weights="w.pth")
    assert load_task(before, teacher=nn.Linear(64, 10)).teacher_weights is None
