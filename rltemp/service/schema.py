"""The bodies of requests and answers as pydantic models, for OpenAPI alone: `tensors` is what reads and checks them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

Datatype = Literal["FP16", "FP32", "FP64", "INT32", "INT64"]
Numbers = TypeAliasType("Numbers", "list[int | float | Numbers]")
Missing = SkipJsonSchema[None]
"""A member that may be left out, but not be null."""


def _without_defaults(found: dict[str, Any]) -> None:
    """What may be left out has no value then."""
    for entry in found.get("properties", {}).values():
        entry.pop("default", None)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)


class Failure(_Strict):
    """Why a request was refused."""

    error: str = Field(examples=["features[3][7] is NaN; send finite numbers"])


class Live(_Strict):
    """The process answers."""

    live: Literal[True]


class Ready(_Strict):
    """Requests are answered."""

    ready: Literal[True]


class ModelReady(_Strict):
    """The model is served."""

    name: str
    ready: Literal[True]


class Server(_Strict):
    """Metadata of the server."""

    name: Literal["rltemp"]
    version: str
    extensions: list[str]


class TensorMetadata(_Strict):
    """An input or output of a model; a size of -1 is free. Logits may have any number of leading axes."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Strict):
    """Metadata of a model.

    `parameters` of a policy are kind, manifest (its JSON text), sha256 and version; of a rule, kind and spec.
    """

    name: str
    versions: list[str]
    platform: Literal["rltemp"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


class IndexEntry(_Strict):
    """A model in a version."""

    name: str
    version: str
    state: Literal["READY"]
    reason: Literal[""]


class InputParameters(_Strict):
    """Of an input that follows the JSON as bytes."""

    binary_data_size: int = Field(ge=0)


class InputTensor(_Strict):
    """An input: `data`, flat or in rows, or the number of its bytes behind the JSON."""

    name: str = Field(max_length=256)
    shape: list[int] = Field(max_length=8)
    datatype: Datatype
    parameters: InputParameters | Missing = None
    data: Numbers | Missing = None


class OutputParameters(_Strict):
    """Of an output that is asked for."""

    binary_data: bool


class RequestedOutput(_Strict):
    """An output that is asked for."""

    name: str = Field(max_length=256)
    parameters: OutputParameters | Missing = None


class RequestParameters(_Strict):
    """Of a request."""

    binary_data_output: bool


class InferRequestBody(_Strict):
    """A request for inference."""

    id: str | Missing = Field(default=None, max_length=256)
    parameters: RequestParameters | Missing = None
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | Missing = None


class OutputTensor(_Strict):
    """An output: `data` row by row, or the number of its bytes behind the JSON."""

    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    parameters: InputParameters | Missing = None
    data: Numbers | Missing = None


class InferAnswer(_Strict):
    """An answer, whole from one version of the model."""

    model_name: str
    model_version: str
    id: str | Missing = None
    outputs: list[OutputTensor]
