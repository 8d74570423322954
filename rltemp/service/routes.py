"""The routes that FastAPI answers, and the schema of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import rltemp
from rltemp.service import schema
from rltemp.service.bodies import read_body
from rltemp.service.metrics import CONTENT_TYPE, Metrics
from rltemp.service.models import PolicyModel
from rltemp.service.ports import Port
from rltemp.service.refusals import Refusal
from rltemp.service.replies import failure_body
from rltemp.service.repository import Repository
from rltemp.strict_json import parse

MODEL = "/v2/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"
BINARY = "application/octet-stream"
EXTENSIONS = ["binary_tensor_data", "model_repository", "rltemp_policy"]

_MODELS = ["universal", "dtkd", "fixed:4"]
Name = Annotated[str, Path(description="A policy's name, or a rule as in `rltemp methods`.", examples=_MODELS)]
Version = Annotated[str, Path(description="A version; without one, the newest.", examples=["1"])]

_BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
_TEXTS = {
    400: "The content cannot be used.",
    401: "The token is missing or wrong.",
    404: "There is no such model or version.",
    405: "The method is not allowed.",
    409: "Another content came before for the same run and look.",
    408: "The request took too long to come.",
    413: "The request is too long.",
    415: "The body's type is not read.",
    422: "The body does not follow the schema.",
    429: "Too many requests of one client.",
    503: "The service is busy.",
}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its schema."""
    return {code: {"model": schema.Failure, "description": _TEXTS[code]} for code in codes}


def application(repository: Repository, metrics: Metrics, closed: bool, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """FastAPI's application.

    Args:
        repository: What is served.
        metrics: Shown at /metrics.
        closed: Whether a token is needed, for the schema.
        routers: Further routes.
    """
    app = FastAPI(
        title="rltemp",
        version=rltemp.__version__,
        description="Temperatures for knowledge distillation: Open Inference Protocol v2 with binary tensors.",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(health(repository))
    for router in (models(repository, bool(routers)), inference(), administration(repository, metrics), *routers):
        app.include_router(router, responses=failures(401) if closed else {})
    app.openapi = lambda: openapi(app, closed)  # type: ignore[method-assign]  # as FastAPI's manual has it
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def health(repository: Repository) -> APIRouter:
    """Whether anybody is there; open to all, and without details."""
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live", response_model=schema.Live)
    async def live() -> dict[str, bool]:
        """Tell that the process answers."""
        return {"live": True}

    @router.get("/v2/health/ready", response_model=schema.Ready)
    async def ready() -> dict[str, bool]:
        """Tell that requests are answered."""
        return {"ready": True}

    @router.get(f"{MODEL}/ready", response_model=schema.ModelReady, responses=failures(404, 422))
    async def model_ready(model: Name) -> dict[str, Any]:
        """Tell that a model is served."""
        return _is_ready(model, None)

    @router.get(f"{VERSION}/ready", response_model=schema.ModelReady, responses=failures(404, 422))
    async def version_ready(model: Name, version: Version) -> dict[str, Any]:
        """Tell that a version of a model is served."""
        return _is_ready(model, version)

    def _is_ready(model: str, version: str | None) -> dict[str, Any]:
        try:
            repository.find(model, version)
        except Refusal as refusal:
            raise Refusal(404, "no such model", refusal.reason) from None
        return {"name": model, "ready": True}

    return router


def models(repository: Repository, learns: bool) -> APIRouter:
    """What there is to ask, and the policies themselves."""
    router = APIRouter(tags=["models"])

    @router.get("/v2", response_model=schema.Server)
    async def server() -> dict[str, Any]:
        """Describe the server."""
        extensions = [*EXTENSIONS, "rltemp_experience"] if learns else EXTENSIONS
        return {"name": "rltemp", "version": rltemp.__version__, "extensions": extensions}

    @router.get(MODEL, response_model=schema.ModelMetadata, responses=failures(404, 422))
    async def metadata(model: Name) -> dict[str, Any]:
        """Describe a model's inputs and outputs."""
        return describe(repository, model, None)

    @router.get(VERSION, response_model=schema.ModelMetadata, responses=failures(404, 422))
    async def version_metadata(model: Name, version: Version) -> dict[str, Any]:
        """Describe a version of a model."""
        return describe(repository, model, version)

    file: dict[int | str, dict[str, Any]] = {
        200: {"content": _BYTES, "description": "A safetensors file; `rltemp.policy_file` checks and reads it."},
        304: {"description": "It is the one that If-None-Match names."},
        **failures(404, 422),
    }

    @router.get(f"{MODEL}/policy", response_class=Response, responses=file)
    async def policy(model: Name, request: Request) -> Response:
        """Send a policy's file; its ETag is its SHA-256."""
        return _policy(model, None, request)

    @router.get(f"{VERSION}/policy", response_class=Response, responses=file)
    async def version_policy(model: Name, version: Version, request: Request) -> Response:
        """Send a version of a policy's file."""
        return _policy(model, version, request)

    def _policy(name: str, version: str | None, request: Request) -> Response:
        model = repository.find(name, version)
        if not isinstance(model, PolicyModel):
            raise Refusal(404, f"{name!r} is a closed-form rule and has no policy file", "unknown_model")
        headers = {"etag": f'"{model.sha256}"', "rltemp-model-version": model.version}
        if _matches(request.headers.get("if-none-match", ""), model.sha256):
            return Response(status_code=304, headers=headers)
        return Response(model.data, media_type=BINARY, headers=headers)

    return router


def inference() -> APIRouter:
    """The schema of inference, which `rltemp.service.app.Service` answers before FastAPI is asked."""
    router = APIRouter(tags=["inference"])
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON object, where tensors follow it.",
        "schema": {"type": "integer", "minimum": 0},
    }
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequestBody"}},
            **_BYTES,
        },
    }
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": schema.InferAnswer, "content": _BYTES, "description": "JSON, or JSON with tensors behind it."},
        **failures(400, 404, 408, 413, 415, 422, 503),
    }
    documented = {"parameters": [length], "requestBody": body}

    async def infer(model: Name) -> None:
        """Answer temperatures for samples."""
        raise AssertionError("answered by Service")

    async def version_infer(model: Name, version: Version) -> None:
        """Answer temperatures for samples, by a version of a model."""
        raise AssertionError("answered by Service")

    for path, endpoint in (
        (f"{MODEL}/infer", infer),
        (f"{VERSION}/infer", version_infer),
    ):
        router.add_api_route(path, endpoint, methods=["POST"], responses=answers, openapi_extra=documented)
    return router


def administration(repository: Repository, metrics: Metrics) -> APIRouter:
    """The list of models, and what Prometheus asks for."""
    router = APIRouter(tags=["administration"])
    body = {
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {"ready": {"type": "boolean"}},
                        "additionalProperties": False,
                    }
                }
            }
        }
    }

    @router.post(
        "/v2/repository/index",
        response_model=list[schema.IndexEntry],
        responses=failures(400, 408, 413, 422),
        openapi_extra=body,
    )
    async def index(request: Request) -> list[dict[str, str]]:
        """List the policies in every version, and the rules at their defaults; all of them are ready."""
        _check_index(await read_body(request.receive, 4096))
        return [
            {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
            for model in repository.index()
        ]

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text format."}
    }

    @router.get("/metrics", response_class=Response, responses=text)
    async def prometheus() -> Response:
        """Count what was asked."""
        policies = [model for versions in repository.policies().values() for model in versions]
        return Response(metrics.text(policies), headers={"content-type": CONTENT_TYPE})

    return router


def openapi(app: FastAPI, closed: bool) -> dict[str, Any]:
    """The schema of all routes: FastAPI's, with what it cannot see, the body of inference and the token."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = found["components"]
        body = schema.InferRequestBody.model_json_schema(ref_template="#/components/schemas/{model}")
        parts["schemas"] |= {**body.pop("$defs"), "InferRequestBody": body}
        if closed:
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"token": []}]
            for operation in (item for path in found["paths"].values() for item in path.values()):
                if "health" in operation["tags"]:
                    operation["security"] = []
        app.openapi_schema = found
    return app.openapi_schema


def describe(repository: Repository, name: str, version: str | None) -> dict[str, Any]:
    """A model's metadata.

    Raises:
        Refusal: 404 where there is no such model.
    """
    model = repository.find(name, version)
    return {
        "name": model.name,
        "versions": [one.version for one in repository.versions(name)],
        "platform": "rltemp",
        "inputs": [_port(port) for port in model.inputs],
        "outputs": [_port(port) for port in model.outputs],
        "parameters": model.parameters,
    }


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.datatypes[0], "shape": list(port.shape)}


def _matches(header: str, sha256: str) -> bool:
    """Tell whether `If-None-Match` names this policy."""
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return sha256 in tags or tags == ["*"]


def _check_index(body: bytes) -> None:
    if not body:
        return
    try:
        raw = parse(body.decode())
    except ValueError as error:
        raise Refusal(400, f"the request is not JSON ({error}); send one object, or nothing", "syntax") from None
    if not isinstance(raw, dict) or raw.keys() - {"ready"} or not isinstance(raw.get("ready", True), bool):
        raise Refusal(422, 'send {"ready": true}, or nothing', "schema")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _failed(request, error)


async def _http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, a method that is not allowed."""
    assert isinstance(error, HTTPException)
    known = {404: "no such route; see /docs", 405: f"{request.method} is not allowed here"}
    message = known.get(error.status_code, str(error.detail))
    return _failed(request, Refusal(error.status_code, message, "unknown_route", error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:80]
    return _failed(request, Refusal(422, f"{where}: {first['msg'][:200]}", "schema"))


def _failed(request: Request, refusal: Refusal) -> Response:
    request.scope["state"]["refuse"] = refusal.with_traceback(None)
    body = failure_body(refusal.message)
    return Response(body, refusal.status, refusal.headers, "application/json")
