"""The routes of the service, and what /docs says of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

import rltemp
from rltemp.service.metrics import CONTENT_TYPE, Metrics
from rltemp.service.refusals import Refusal
from rltemp.service.repository import Repository
from rltemp.service.served_models import Inference, Model, PolicyModel
from rltemp.service.strict_values import read_object
from rltemp.service.tensors import InferBody, StrictModel, decode, encode

MODEL, VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
JSON, BINARY = "application/json", "application/octet-stream"
EXTENSIONS = ["binary_tensor_data", "model_repository", "rltemp_policy"]
AT_ONCE_BYTES = 2**16
"""Of a request that is worked on between two others, which takes 1 ms; a larger one goes to a thread."""
THREADS = 2
"""Large requests at once."""

BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
_PARAMETERS: list[dict[str, Any]] = [
    {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
    for name, text in (
        ("model", "A policy's name, or a rule as in `rltemp methods`, such as `fixed:4`."),
        ("version", "A version; without one, the newest."),
    )
]
MODEL_PARAMETERS = _PARAMETERS[:1]
_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the JSON object, where tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}

Documented = dict[int | str, dict[str, Any]]


class IndexBody(StrictModel):
    """What the index may be asked with; every model that it lists is ready."""

    ready: bool = True


class Failure(StrictModel):
    """Why a request was refused: one sentence."""

    error: str


def refusals(*codes: int) -> Documented:
    """Document the refusals of a route."""
    return {code: {"model": Failure, "description": HTTPStatus(code).phrase} for code in codes}


def documented_body(model: type[BaseModel], **content: Any) -> dict[str, Any]:
    """Document the body of a request that the route reads itself: a pydantic model as JSON, and other content."""
    schema = model.model_json_schema()
    whole = {JSON: {"schema": _inlined(schema, schema.get("$defs", {}))}, **content}
    return {"requestBody": {"required": True, "content": whole}}


def file_response(request: Request, data: bytes, sha256: str, version: str) -> Response:
    """Send a policy file, its SHA-256 as ETag; 304 without it where `If-None-Match` names it."""
    headers = {"etag": f'"{sha256}"', "rltemp-model-version": version}
    given = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in given.split(",")]
    if sha256 in tags or tags == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=BINARY, headers=headers)


def documented_file(text: str) -> Documented:
    """Document the answers of `file_response`."""
    same = {"description": "It is the one that If-None-Match names."}
    return {200: {"content": BYTES, "description": text}, 304: same, **refusals(404)}


def add_model_route(
    router: APIRouter, end: str, endpoint: Callable[..., Awaitable[Any]], method: str = "GET", **options: Any
) -> None:
    """Add a route of a model and the same one of its versions; the endpoint's name is the route's in the metrics."""
    extra = options.pop("openapi_extra", {})
    for path, parameters in ((MODEL, MODEL_PARAMETERS), (VERSION, _PARAMETERS)):
        documented = {**extra, "parameters": [*parameters, *extra.get("parameters", [])]}
        router.add_api_route(f"{path}{end}", endpoint, methods=[method], openapi_extra=documented, **options)


def health_routes(repository: Repository) -> APIRouter:
    """Whether anybody is there; open to all, and without details."""
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Tell that the process answers."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        """Tell that requests are answered."""
        return {"ready": True}

    async def model_ready(request: Request) -> dict[str, Any]:
        """Tell that a model is served."""
        try:
            _find(repository, request)
        except Refusal as refusal:
            raise Refusal(404, "no such model", refusal.reason) from None
        return {"name": request.path_params["model"], "ready": True}

    add_model_route(router, "/ready", model_ready, responses=refusals(404), name="ready")
    return router


def model_routes(repository: Repository, learns: bool) -> APIRouter:
    """What there is to ask, and the policies themselves."""
    router = APIRouter(tags=["models"])

    @router.get("/v2")
    async def server() -> dict[str, Any]:
        """Describe the server."""
        extensions = [*EXTENSIONS, "rltemp_experience"] if learns else EXTENSIONS
        return {"name": "rltemp", "version": rltemp.__version__, "extensions": extensions}

    async def metadata(request: Request) -> dict[str, Any]:
        """Describe a model: its inputs, its outputs, and a policy's manifest and SHA-256 or a rule's name."""
        model = _find(repository, request)
        return {
            "name": model.name,
            "versions": [one.version for one in repository.versions(model.name)],
            "platform": "rltemp",
            "inputs": model.inputs,
            "outputs": model.outputs,
            "parameters": model.parameters,
        }

    async def policy(request: Request) -> Response:
        """Send a policy's file; its ETag is its SHA-256."""
        model = _find(repository, request)
        if not isinstance(model, PolicyModel):
            raise Refusal(404, f"{model.name!r} is a closed-form rule and has no policy file", "unknown_model")
        return file_response(request, model.data, model.sha256, model.version)

    file = documented_file("A safetensors file; `rltemp.policy.policy_file` checks and reads it.")
    add_model_route(router, "", metadata, responses=refusals(404))
    add_model_route(router, "/policy", policy, response_class=Response, responses=file)
    return router


def inference_routes(repository: Repository, metrics: Metrics) -> APIRouter:
    """What a training step asks: bytes in, bytes out."""
    router = APIRouter(tags=["inference"])
    threads: list[CapacityLimiter] = []  # made in the loop that it belongs to

    async def infer(request: Request) -> Response:
        """Answer temperatures for samples."""
        started = time.perf_counter()
        check_content(request, JSON, BINARY)
        model, length = _find(repository, request), header_length(request)
        body = await request.body()
        if len(body) <= AT_ONCE_BYTES:
            data, header, found = answer(model, body, length)
        else:
            if not threads:
                threads.append(CapacityLimiter(THREADS))
            data, header, found = await to_thread.run_sync(answer, model, body, length, limiter=threads[0])
        metrics.inferred(model.kind, time.perf_counter() - started, found.samples, found.clamped)
        if header is None:
            return Response(data, media_type=JSON)
        return Response(data, media_type=BINARY, headers={"inference-header-content-length": str(header)})

    described = "JSON as the protocol has it, or JSON with tensors behind it."
    answers: Documented = {200: {"content": {JSON: {"schema": {"type": "object"}}, **BYTES}, "description": described}}
    add_model_route(
        router,
        "/infer",
        infer,
        "POST",
        response_class=Response,
        responses={**answers, **refusals(400, 404, 408, 413, 415, 422, 503)},
        openapi_extra={**documented_body(InferBody, **BYTES), "parameters": [_LENGTH]},
    )
    return router


def list_routes(repository: Repository, metrics: Metrics) -> APIRouter:
    """The list of models, and what Prometheus asks for."""
    router = APIRouter(tags=["administration"])

    @router.post("/v2/repository/index", responses=refusals(400, 408, 413, 422, 503))
    async def index(request: Request) -> list[dict[str, str]]:
        """List every version of the policies, and the rules at their defaults."""
        if body := await request.body():
            read_object(IndexBody, body)
        return [
            {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
            for model in repository.index()
        ]

    text: Documented = {200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."}}

    @router.get("/metrics", response_class=Response, responses=text, name="metrics")
    async def prometheus() -> Response:
        """Count what was asked."""
        policies = [model for versions in repository.policies().values() for model in versions]
        return Response(metrics.text(policies), headers={"content-type": CONTENT_TYPE})

    return router


def answer(model: Model, body: bytes, length: int | None) -> tuple[bytes, int | None, Inference]:
    """Read a request, answer it, write the answer: its body, the length of its JSON where bytes follow, and what it is.

    Raises:
        Refusal: Where the request cannot be answered.
    """
    request = decode(body, length)
    found = model.infer(request.inputs, None if request.outputs is None else tuple(request.outputs))
    return *encode(model.name, model.version, found.outputs, request), found


def check_content(request: Request, *kinds: str) -> None:
    """Refuse a body of another type than these, the first of which stands for none, and a compressed one: 415."""
    headers = request.headers
    if headers.get("content-type", kinds[0]).partition(";")[0].strip().lower() not in kinds:
        raise Refusal(415, f"send Content-Type {' or '.join(kinds)}", "media_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "compressed bodies are not read; send it as it is", "media_type")


def header_length(request: Request) -> int | None:
    """Read `Inference-Header-Content-Length`; refuse what is no number: 400."""
    lengths = request.headers.getlist("inference-header-content-length")
    if len(lengths) > 1 or any(not (one.isascii() and one.isdigit()) or len(one) > 10 for one in lengths):
        raise Refusal(400, "Inference-Header-Content-Length is no number of bytes", "content")
    return int(lengths[0]) if lengths else None


def _find(repository: Repository, request: Request) -> Model:
    return repository.find(request.path_params["model"], request.path_params.get("version"))


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema without references: OpenAPI looks for them elsewhere than pydantic puts them."""
    if isinstance(part, dict):
        if "$ref" in part:
            return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
        return {key: _inlined(value, definitions) for key, value in part.items() if key != "$defs"}
    return [_inlined(each, definitions) for each in part] if isinstance(part, list) else part
