"""The networks: small ones for small tasks, the ResNets of the distillation literature, and torchvision's.

To add one, write a function `(option, image_shape, num_classes) -> nn.Module` and give it a line in `MODELS`.
Every network maps images `[B, C, H, W]` to logits `[B, num_classes]`, `gpt` tokens `[B, T]` to `[B, T, num_classes]`.
All run under `torch.func.vmap`: no in-place arithmetic on activations, no control flow that depends on data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.kd.names import lookup, split_spec
from rltemp.models.library_networks import timm_network
from rltemp.models.random_numbers import seeded
from rltemp.models.transformer import GPT
from rltemp.optional_imports import import_library

ImageShape = tuple[int, ...]
ModelBuilder = Callable[[str, ImageShape, int], nn.Module]


def build_model(spec: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return the network that `spec` names, its weights drawn from torch's global generator.

    >>> build_model("mlp:8", (1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])

    Args:
        spec: `linear`, `mlp`, `mlp:64x64` (hidden widths), `cnn`, `cnn:8x16` (channels), `resnet8` to `resnet110`,
            `resnet8x4` and `resnet32x4`, `gpt`, `gpt:32x2` (width, layers), `timm:NAME`, or the name of a
            classification network in torchvision.
        image_shape: `(channels, height, width)` of one image; `(T,)` of one sequence of tokens.
        num_classes: C, the number of logits.

    Raises:
        BadInputError: Where the name or its option is not known, or the network cannot take such images.
    """
    name, option = split_spec(spec)
    builder = MODELS.get(name) or _torchvision_builder(name)
    if option and builder not in (mlp, cnn, gpt, timm_network):
        raise BadInputError(f"model {name!r} takes no option; got {option!r}")
    model = builder(option, image_shape, num_classes)
    _check_fits(model, spec, image_shape, num_classes)
    return model


def seeded_model(spec: str, image_shape: ImageShape, num_classes: int, seed: int) -> nn.Module:
    """Return `build_model(...)` with weights from `seed` alone; the global generator stays as it was."""
    with seeded(seed):
        return build_model(spec, image_shape, num_classes)


def linear(option: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return one linear layer on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))


def mlp(option: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return a perceptron with ReLUs; `option` holds the hidden widths, `64x32` (default: one layer of 8)."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(image_shape)
    for units in _widths("mlp", option):
        layers += [nn.Linear(size, units), nn.ReLU()]
        size = units
    return nn.Sequential(*layers, nn.Linear(size, num_classes))


def cnn(option: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return a small convolutional network; `option` holds the channels, `8x16` (default: one layer of 8).

    3x3 convolutions with ReLUs, each after the first at half the resolution, global average pooling and a linear
    layer. It has no batch normalisation, so nothing but the weights differs between the students of a stack.

    Raises:
        BadInputError: Where the channels cannot be read, or a side of the images has less than 8 pixels.
    """
    _refuse_small_images("a cnn needs", image_shape)
    channels = image_shape[0]
    layers: list[nn.Module] = []
    for width in _widths("cnn", option):
        layers += [nn.Conv2d(channels, width, 3, stride=2 if layers else 1, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def resnet(
    blocks: int, widths: tuple[int, int, int, int], option: str, image_shape: ImageShape, num_classes: int
) -> nn.Module:
    """Return a `ResNet`; images need 8 pixels a side, which it halves twice."""
    _refuse_small_images("ResNets need", image_shape)
    return ResNet(blocks, widths, image_shape[0], num_classes)


def gpt(option: str, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Return a `GPT` for sequences of tokens `(T,)`; `option` holds width and layers, `32x2` (default: 32x1).

    Raises:
        BadInputError: Where the option cannot be read, or the data are no sequences.
    """
    size = re.fullmatch("([1-9][0-9]{0,3})(?:x([1-9][0-9]?))?", option or "32x1")
    if size is None:
        raise BadInputError(f"cannot read 'gpt:{option}': needed are a width and a number of layers, as in gpt:32x2")
    if len(image_shape) != 1:
        raise BadInputError(f"a gpt needs sequences of tokens (T,); got inputs of shape {image_shape}")
    return GPT(num_classes, image_shape[0], width=int(size[1]), layers=int(size[2] or 1))


class ResNet(nn.Module):
    """The ResNet for small images of He et al. (2016), https://arxiv.org/abs/1512.03385, section 4.2.

    A convolution, three stages of `blocks` basic blocks at full, half and quarter resolution, global average
    pooling: 6 blocks + 2 layers. As in the distillation literature, a shortcut whose shape changes is a 1x1
    convolution (the paper's option B). Parameters are named as in RepDistiller and mdistiller
    (https://github.com/HobbitLong/RepDistiller), so that their published weights can be loaded.

    Args:
        blocks: Blocks per stage.
        widths: Channels of the first convolution and of the three stages.
        channels: Channels of the images.
        num_classes: C, the number of logits.
    """

    def __init__(self, blocks: int, widths: tuple[int, int, int, int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, num_classes]`."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.fc(hidden.mean(dim=(-2, -1)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width_in, width_out, 3, stride)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = _convolution(width_out, width_out, 3)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.downsample = nn.Sequential(_convolution(width_in, width_out, 1, stride), nn.BatchNorm2d(width_out))

    def forward(self, images: Tensor) -> Tensor:
        """Map `[B, width_in, H, W]` to `[B, width_out, H / stride, W / stride]`."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(images))


def _convolution(width_in: int, width_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def _stage(blocks: int, width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """Return `blocks` blocks, the first of which changes width and resolution."""
    first = BasicBlock(width_in, width_out, stride)
    return nn.Sequential(first, *(BasicBlock(width_out, width_out, 1) for _ in range(blocks - 1)))


def _widths(name: str, option: str) -> list[int]:
    """Read `64x32`; no option is one layer of 8."""
    widths = (option or "8").split("x")
    if len(widths) > 16 or not all(re.fullmatch("[1-9][0-9]{0,4}", width) for width in widths):
        raise BadInputError(
            f"cannot read '{name}:{option}': needed are hidden widths of 1 to 99,999, as in {name}:8 or {name}:16x32, "
            "and 16 of them at most"
        )
    return [int(width) for width in widths]


def _torchvision_builder(name: str) -> ModelBuilder:
    """Return a builder for torchvision's network `name`; a wrong name is compared with ours and theirs."""
    ours = ", ".join(sorted(MODELS))
    models = import_library("torchvision.models", f"model {name!r}, which is none of rltemp's own ({ours}),")

    def build(option: str, _: ImageShape, num_classes: int) -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
        return model

    theirs: dict[str, ModelBuilder] = dict.fromkeys(models.list_models(module=models), build)
    known = f"{ours}, those of torchvision by name, and your own as FILE.py:NAME"
    return lookup({**theirs, **MODELS}, name, "model", known)


def _refuse_small_images(needed_by: str, image_shape: ImageShape) -> None:
    if len(image_shape) != 3 or min(image_shape[1:]) < 8:
        got = " x ".join(map(str, image_shape[1:])) if len(image_shape) == 3 else f"inputs of shape {image_shape}"
        raise BadInputError(f"{needed_by} images of at least 8 x 8 pixels; got {got}")


def _check_fits(model: nn.Module, spec: str, image_shape: ImageShape, num_classes: int) -> None:
    """Refuse a network that cannot take the task's images, here and not at the first step of a run.

    Two inputs run through the network in train mode on the meta device, which computes shapes alone.
    """
    state = {name: value.detach().to("meta") for name, value in model.state_dict(keep_vars=True).items()}
    reads_tokens = isinstance(model, GPT)
    inputs = torch.empty(2, *image_shape, dtype=torch.long if reads_tokens else torch.float, device="meta")
    try:
        logits = torch.func.functional_call(model, state, (inputs,))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).partition("\n")[0]
    else:
        if isinstance(logits, Tensor) and logits.shape == (*(inputs.shape if reads_tokens else (2,)), num_classes):
            return
        reason = "it answers with something other than one logit per class"
    raise BadInputError(
        f"model {spec!r} cannot take images of shape {image_shape} ({reason}). Most networks of "
        "torchvision need 3 channels, some of them larger images; choose another model"
    )


_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

MODELS: Mapping[str, ModelBuilder] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    **{f"resnet{6 * blocks + 2}": partial(resnet, blocks, _NARROW) for blocks in (1, 2, 3, 5, 7, 9, 18)},
    "resnet8x4": partial(resnet, 1, _WIDE),
    "resnet32x4": partial(resnet, 5, _WIDE),
    "gpt": gpt,
    "timm": timm_network,
}
