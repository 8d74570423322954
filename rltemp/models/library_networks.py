"""Networks of other libraries, `timm:NAME` and `hf:PATH`, from files on this machine, and how pictures reach them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from torch import nn

from rltemp.errors import BadInputError
from rltemp.io.own_code import own_code
from rltemp.io.run_folders import read_json
from rltemp.optional_imports import import_library

NORMALISE = "normalise"
"""Where the metadata of a teacher that rltemp has trained says how its pictures were normalised."""


def timm_network(option: str, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Timm's network of this name, its weights drawn at random; nothing is downloaded.

    Raises:
        BadInputError: Where timm is not there, or does not know the name.
    """
    timm = import_library("timm", f"model 'timm:{option}'", "timm")
    if not timm.is_model(option):
        raise BadInputError(f"timm knows no model {option!r}; timm.list_models() lists them")
    with own_code(f"timm:{option}"):
        network: nn.Module = timm.create_model(
            option,
            pretrained=False,
            num_classes=num_classes,
            in_chans=image_shape[0],
            **_sized(timm, option, image_shape),
        )
    return network


def saved_network(folder: str, kind: str = "AutoModelForImageClassification") -> nn.Module:
    """The network of this kind in a folder of transformers' `save_pretrained`, with its weights.

    Only safetensors are read, and no code of the folder runs.

    Raises:
        BadInputError: Where there is no such folder, or it holds something else.
    """
    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise BadInputError(f"hf:{folder}: no {place / 'config.json'}; needed: a folder that save_pretrained wrote")
    library = import_library("transformers", f"teacher 'hf:{folder}'", "transformers")
    with own_code(f"hf:{folder}"):
        network: nn.Module
        network, found = getattr(library, kind).from_pretrained(
            place, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):  # drawn at random, of which the library only warns
        raise BadInputError(
            f"hf:{folder} holds no weights of {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; needed: "
            f"a folder that save_pretrained of an {kind} wrote"
        )
    return network


def normalisation_beside(weights: str) -> str:
    """What pictures of a teacher were normalised by, as `Pictures` takes it: mean/deviation for pixels in 0..1.

    It stands in the metadata of a file that rltemp has written, or in timm's `config.json` or transformers'
    `preprocessor_config.json` beside the weights.

    Args:
        weights: A file of weights, or `hf:PATH`.

    Raises:
        BadInputError: Where none of them says it.
    """
    place = Path(weights.removeprefix("hf:")).expanduser()
    if place.suffix == ".safetensors" and place.is_file():
        try:
            with safetensors.safe_open(place, "pt") as file:
                said = (file.metadata() or {}).get(NORMALISE)
        except safetensors.SafetensorError as error:
            raise BadInputError(f"{place} is not a safetensors file: {error}") from error
        if said:
            return str(said)
    folder = place if place.is_dir() else place.parent
    for name, keys in (("preprocessor_config.json", ("image_mean", "image_std")), ("config.json", ("mean", "std"))):
        found: dict[str, Any] = read_json(folder / name) if (folder / name).is_file() else {}
        inner = found.get("pretrained_cfg", found)
        if isinstance(inner, dict) and all(isinstance(inner.get(key), list) for key in keys):
            return "/".join(",".join(map(json.dumps, inner[key])) for key in keys)
    raise BadInputError(
        f"normalise teacher: nothing beside {weights} says how its pictures were normalised (config.json, "
        "preprocessor_config.json); give mean/deviation, imagenet or half"
    )


def _sized(timm: Any, name: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The size of pictures, for networks that need to know it."""
    fixed = timm.models.get_pretrained_cfg(name)
    return {"img_size": tuple(image_shape[1:])} if fixed is not None and fixed.fixed_input_size else {}
