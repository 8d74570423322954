"""The routes of learning: what runs report, and the versions that they draw around; and what Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anyio import Lock, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from rltemp.agents.reports import ConflictError, Receipt, Report
from rltemp.errors import BadInputError
from rltemp.io.strict_json import parse
from rltemp.policy.manifest import describe
from rltemp.service.bodies import read_body
from rltemp.service.learning import Learning, Published, StoppedError
from rltemp.service.limits import Limits
from rltemp.service.paths import BYTES, MODEL, VERSION, Name, Version, failures, file_response
from rltemp.service.refusals import Refusal
from rltemp.service.tensors import MAX_JSON_BYTES


def learning_routes(learning: Learning, limits: Limits) -> APIRouter:
    """What runs report to a model that learns, and what their draws are around."""
    router = APIRouter(tags=["learning"])
    schema = Report.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")
    record = {**definitions["Record"]}
    schema["properties"]["records"]["items"] = record
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    reading = Lock()  # one report at a time: the numbers of a long one are 30 MiB as objects

    @router.post(
        f"{MODEL}/experience",
        response_model=Receipt,
        responses=failures(400, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra={"requestBody": body},
    )
    async def experience(model: Name, request: Request) -> Receipt:
        """Take in what runs report: whole or not at all, and each look once, however often it comes."""
        _check_model(model)
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "send Content-Type application/json", "media_type")
        data = await read_body(request.receive, min(limits.request_bytes, MAX_JSON_BYTES))
        async with reading:
            return await to_thread.run_sync(taken, learning, data)

    file: dict[int | str, dict[str, Any]] = {
        200: {
            "content": BYTES,
            "description": "A policy file; its provenance has version, exploration (a standard deviation), potential.",
        },
        304: {"description": "It is the one that If-None-Match names."},
        **failures(404),
    }

    @router.get(f"{MODEL}/centre", response_class=Response, responses=file)
    async def centre(model: Name, request: Request) -> Response:
        """Send what the next draws are to be around."""
        _check_model(model)
        return _centre(learning.find(), request)

    @router.get(f"{VERSION}/centre", response_class=Response, responses=file)
    async def version_centre(model: Name, version: Version, request: Request) -> Response:
        """Send what the draws of a version are around."""
        _check_model(model)
        number = int(version) if version.isascii() and version.isdigit() and len(version) < 16 else 0
        return _centre(learning.find(number), request)

    def _check_model(model: str) -> None:
        if model != learning.name:
            raise Refusal(404, f"nothing is learned under {model[:80]!r}", "unknown_model")

    return router


def _centre(found: Published | None, request: Request) -> Response:
    if found is None:
        raise Refusal(404, "there is no such version, or not any more", "unknown_model")
    return file_response(request, found.centre, found.sha256, str(found.version))


def taken(learning: Learning, data: bytes) -> Receipt:
    """Read a report and take it in.

    Raises:
        Refusal: 400, 409, 422 or 503, with the reason.
    """
    try:
        report = Report.model_validate(parse(data.decode()))
    except ValidationError as error:
        raise Refusal(422, describe(error), "schema") from None
    except ValueError as error:
        raise Refusal(400, f"the report is not strict JSON ({str(error)[:200]}); send one object", "syntax") from None
    try:
        return learning.take(report)
    except StoppedError:
        raise Refusal(
            503, "nothing is learned any more; the log says why", "overloaded", {"retry-after": "60"}
        ) from None
    except ConflictError as error:
        raise Refusal(409, str(error), "conflict") from None
    except BadInputError as error:
        raise Refusal(400, str(error), "content") from None


class LearningCollector(Collector):
    """Reads what there is to tell when Prometheus asks."""

    def __init__(self, learning: Learning) -> None:
        self._learning = learning

    def collect(self) -> Iterable[Metric]:
        """The metrics of learning, with the model's name."""
        learning, labels = self._learning, [self._learning.name]
        records = CounterMetricFamily("rltemp_experience_records", "Records by fate.", labels=["model", "fate"])
        runs = CounterMetricFamily("rltemp_experience_runs", "Runs by fate.", labels=["model", "fate"])
        for name, count in sorted(dict(learning.ledger.counts).items()):  # a copy: others count on
            fate, _, kind = name.rpartition("_")
            (records if kind == "records" else runs).add_metric([*labels, fate], count)
        yield records
        yield runs
        for name, text, value in (
            ("version", "The newest version.", learning.version),
            ("stopped", "1 where nothing is learned any more.", float(bool(learning.failure))),
            ("update_seconds", "Of the last update.", learning.last.get("seconds", 0.0)),
            (
                "improvement",
                "Of the students of the last update, mean; potential.",
                learning.last.get("improvement", 0.0),
            ),
            (
                "clip_fraction",
                "Of the last update's decisions that PPO clipped.",
                learning.last.get("clip_fraction", 0.0),
            ),
        ):
            gauge = GaugeMetricFamily(f"rltemp_learning_{name}", text, labels=["model"])
            gauge.add_metric(labels, value)
            yield gauge
