"""Networks: sizes from arithmetic, one seed one network, and the same numbers stacked as alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from rltemp.errors import BadInputError
from rltemp.models.networks import MODELS, build_model, seeded_model


def parameters(spec: str, image_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 100) -> int:
    return sum(p.numel() for p in seeded_model(spec, image_shape, num_classes, 0).parameters())


def resnet_parameters(depth: int, widths: tuple[int, int, int, int], num_classes: int) -> int:
    """From the description alone: depth 6n + 2, two convolutions a block, 2 numbers a normalised channel."""
    blocks = (depth - 2) // 6
    total = 3 * widths[0] * 9 + 2 * widths[0]
    for stage, (before, width) in enumerate(pairwise(widths)):
        total += before * width * 9 + (2 * blocks - 1) * width * width * 9 + 2 * blocks * 2 * width
        if stage > 0 or before != width:
            total += before * width + 2 * width
    return total + widths[3] * num_classes + num_classes


def test_perceptrons_have_the_parameters_counted_by_hand() -> None:
    assert parameters("linear", (1, 8, 8), 10) == 64 * 10 + 10
    assert parameters("mlp", (1, 8, 8), 10) == parameters("mlp:8", (1, 8, 8), 10) == 64 * 8 + 8 + 8 * 10 + 10
    assert parameters("mlp:16x4", (1, 8, 8), 10) == 64 * 16 + 16 + 16 * 4 + 4 + 4 * 10 + 10


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
RESNETS = {f"resnet{depth}": (depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)}
RESNETS |= {f"resnet{depth}x4": (depth, WIDE) for depth in (8, 32)}
ELSEWHERE = ("gpt", "timm")
"""In test_transformer.py, and in test_teacher_files.py."""
KNOWN = {"resnet20": 278_324, "resnet8x4": 1_233_540, "resnet32x4": 7_433_860}


@pytest.mark.parametrize("spec", RESNETS)
def test_resnets_have_the_parameters_that_their_description_gives(spec: str) -> None:
    assert parameters(spec) == resnet_parameters(*RESNETS[spec], 100) == KNOWN.get(spec, parameters(spec))
    assert set(MODELS) == {"linear", "mlp", "cnn", *ELSEWHERE, *RESNETS}


PICTURE_NETWORKS = [name for name in MODELS if name not in ELSEWHERE]


@pytest.mark.parametrize("spec", [*PICTURE_NETWORKS, "mlp:5x5", "cnn:8x16", "squeezenet1_1"])
def test_every_network_answers_finite_logits_and_trains_all_its_weights(spec: str) -> None:
    model = seeded_model(spec, (3, 32, 32), 7, 0)
    logits = model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (3, 40, 64)])
@pytest.mark.parametrize("spec", ["resnet8", "cnn:8x16"])
def test_convolutional_networks_take_images_of_any_size_from_8_pixels(spec: str, shape: tuple[int, int, int]) -> None:
    assert build_model(spec, shape, 5).eval()(torch.zeros(2, *shape)).shape == (2, 5)


def test_a_cnn_has_a_convolution_for_each_width_and_halves_the_resolution() -> None:
    one_layer = 3 * 8 * 9 + 8
    assert parameters("cnn") == parameters("cnn:8") == one_layer + 8 * 100 + 100
    assert parameters("cnn:8x16") == one_layer + 8 * 16 * 9 + 16 + 16 * 100 + 100
    layers = build_model("cnn:8x16x4", (3, 32, 20), 5)
    shapes = []
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    layers(torch.zeros(2, 3, 32, 20))
    assert shapes == [(8, 32, 20), (16, 16, 10), (4, 8, 5)]


def test_a_cnn_answers_a_moved_pixel_alike() -> None:
    model = seeded_model("cnn:8", (1, 12, 12), 5, 0)
    images = torch.zeros(2, 1, 12, 12)
    images[0, 0, 3, 4] = images[1, 0, 8, 6] = 1
    here, there = model(images)
    torch.testing.assert_close(here, there)


def test_a_resnet_halves_the_resolution_in_its_second_and_third_stage() -> None:
    model = seeded_model("resnet14", (3, 32, 32), 5, 0)
    first = model.get_submodule("layer1")(torch.zeros(2, 16, 32, 32))
    second = model.get_submodule("layer2")(first)
    third = model.get_submodule("layer3")(second)
    assert [tuple(x.shape[1:]) for x in (first, second, third)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_resnet_weights_are_named_as_in_the_published_checkpoints() -> None:
    names = set(seeded_model("resnet8", (3, 32, 32), 5, 0).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv2.weight", "fc.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight"} <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)


@pytest.mark.parametrize("spec", ["mlp:8", "cnn:8x16", "resnet8", "squeezenet1_1"])
def test_the_seed_alone_determines_weights_and_the_generator_stays(spec: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = seeded_model(spec, (3, 32, 32), 5, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (seeded_model(spec, (3, 32, 32), 5, seed).state_dict() for seed in (3, 4))
    unlike, drawn = (build_model(spec, (3, 32, 32), 5).state_dict() for _ in range(2))  # from the global generator
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(unlike[name], drawn[name]) for name in one)
    statistics = {name: value for name, value in drawn.items() if "running_var" in name or "tracked" in name}
    assert all(bool((value == ("running_var" in name)).all()) for name, value in statistics.items())


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("resnet19", (3, 32, 32), "did you mean 'resnet1"),
        ("resnet2", (3, 32, 32), "did you mean .*Known: cnn, .*mlp, .*, and your own as FILE.py:NAME$"),
        ("mlp:8xx8", (1, 8, 8), "hidden widths of 1 to 99,999"),
        ("mlp:0", (1, 8, 8), "hidden widths of 1 to 99,999"),
        ("mlp:1e3", (1, 8, 8), "hidden widths of 1 to 99,999"),
        ("cnn:8xx8", (1, 8, 8), "cannot read 'cnn:8xx8'.*widths of 1 to 99,999, as in cnn:8 or cnn:16x32"),
        ("cnn:0", (1, 8, 8), "widths of 1 to 99,999"),
        ("cnn:8", (13, 1, 1), "a cnn needs images of at least 8 x 8 pixels; got 1 x 1"),
        ("linear:8", (1, 8, 8), "'linear' takes no option; got '8'"),
        ("resnet8:4", (3, 32, 32), "takes no option; got '4'"),
        ("resnet18:4", (3, 32, 32), "'resnet18' takes no option"),
        ("resnet8", (1, 7, 8), "at least 8 x 8 pixels; got 7 x 8"),
        ("resnet18", (1, 32, 32), r"cannot take images of shape \(1, 32, 32\).*need 3 channels"),
        ("alexnet", (3, 32, 32), "cannot take images.*too small"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(spec: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build_model(spec, shape, 10)


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("none")])
def test_a_broken_torchvision_stops_only_the_models_that_need_it(error, monkeypatch):
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr("rltemp.optional_imports.importlib.import_module", broken)
    assert isinstance(build_model("mlp", (1, 8, 8), 10), nn.Module)
    with pytest.raises(BadInputError, match=r"model 'resnet18', which is none of rltemp's own \(cnn, gpt, linear, mlp"):
        build_model("resnet18", (3, 32, 32), 10)


def test_the_core_modules_import_without_torchvision_and_scikit_learn() -> None:
    code = (
        "import sys, rltemp.data.dataset, rltemp.data.sources, rltemp.models.networks, rltemp.models.weight_files\n"
        "assert not {'torchvision', 'sklearn'} & set(sys.modules)\n"
        "rltemp.models.networks.build_model('resnet8', (3, 32, 32), 10)\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
