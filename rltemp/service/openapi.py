"""The schema of all routes, for OpenAPI; that of inference, which FastAPI does not answer, among them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from rltemp.service import schema
from rltemp.service.paths import BYTES, MODEL, VERSION, Name, Version, failures


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
            **BYTES,
        },
    }
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": schema.InferAnswer, "content": BYTES, "description": "JSON, or JSON with tensors behind it."},
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
