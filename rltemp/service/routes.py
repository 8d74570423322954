"""The routes that FastAPI answers, and the schema of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

import rltemp
from rltemp.io.strict_json import parse
from rltemp.service import schema
from rltemp.service.bodies import read_body
from rltemp.service.failures import answer_failures
from rltemp.service.metrics import CONTENT_TYPE, Metrics
from rltemp.service.models import PolicyModel
from rltemp.service.openapi import inference, openapi
from rltemp.service.paths import BYTES, MODEL, VERSION, Name, Version, failures, file_response
from rltemp.service.ports import Port
from rltemp.service.refusals import Refusal
from rltemp.service.repository import Repository

EXTENSIONS = ["binary_tensor_data", "model_repository", "rltemp_policy"]


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
    answer_failures(app)
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
        200: {"content": BYTES, "description": "A safetensors file; `rltemp.policy.policy_file` checks and reads it."},
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
        return file_response(request, model.data, model.sha256, model.version)

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


def _check_index(body: bytes) -> None:
    if not body:
        return
    try:
        raw = parse(body.decode())
    except ValueError as error:
        raise Refusal(400, f"the request is not JSON ({error}); send one object, or nothing", "syntax") from None
    if not isinstance(raw, dict) or raw.keys() - {"ready"} or not isinstance(raw.get("ready", True), bool):
        raise Refusal(422, 'send {"ready": true}, or nothing', "schema")
