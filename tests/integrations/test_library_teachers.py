"""Teachers of timm and transformers, as their own libraries save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import host
from torch import nn

from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.models.networks import build_model
from rltemp.training.preparation import prepare

DIGITS = {"num_channels": 1, "num_labels": 10}


def prepared(teacher: str, **options: Any) -> nn.Module:
    """The teacher of a task, as students get it."""
    network = prepare(load_task("digits", teacher=teacher, **options)).teacher
    assert network is not None
    return network


def transformers_network(kind: str) -> Any:
    """A small ResNet with weights that nobody has trained."""
    library = host("transformers")
    config = library.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", return_dict=True, **DIGITS
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(library, kind)(config).eval()


def test_timms_networks_are_built_by_name() -> None:
    host("timm")
    assert build_model("timm:resnet18", (3, 32, 32), 7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(BadInputError, match="timm knows no model 'resnet18x'"):
        build_model("timm:resnet18x", (3, 32, 32), 7)


def test_a_teacher_of_timm_gets_the_weights_of_timms_checkpoint(tmp_path: Path) -> None:
    timm, utils = host("timm"), host("timm.utils")
    saved = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(saved.parameters(), 0.1)
    saver = utils.CheckpointSaver(saved, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    state = prepared("timm:resnet10t", teacher_weights=str(tmp_path / "last.pth.tar")).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saved.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_folder_of_transformers_is_a_teacher_of_32_bits(tmp_path: Path, kind: torch.dtype) -> None:
    saved = transformers_network("ResNetForImageClassification").to(kind)
    saved.save_pretrained(tmp_path)
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(prepared(f"hf:{tmp_path}")(images).logits, saved.float()(images).logits)


def test_a_folder_of_transformers_without_the_classifier_is_refused(tmp_path: Path) -> None:
    transformers_network("ResNetModel").save_pretrained(tmp_path)
    with pytest.raises(BadInputError, match=r"holds no weights of classifier\.1\.bias, classifier\.1\.weight; needed"):
        load_task("digits", teacher=f"hf:{tmp_path}")
