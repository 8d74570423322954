"""The routes of learning: what runs report, and the versions that they draw around; and what Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterable

from anyio import Lock, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rltemp.agents.reports import ConflictError, Receipt, Report
from rltemp.errors import BadInputError
from rltemp.service.learning import Learning
from rltemp.service.refusals import Refusal, busy, wrong_content
from rltemp.service.routes import (
    JSON,
    MODEL,
    MODEL_PARAMETERS,
    add_model_route,
    check_content,
    documented_body,
    documented_file,
    file_response,
    refusals,
)
from rltemp.service.strict_values import read_object


def learning_routes(learning: Learning) -> APIRouter:
    """What runs report to a model that learns, and what their draws are around."""
    router = APIRouter(tags=["learning"])
    reading = Lock()  # one report at a time: the numbers of a long one are 30 MiB as objects

    def check_model(request: Request) -> None:
        if (model := request.path_params["model"]) != learning.name:
            raise Refusal(404, f"nothing is learned under {model[:80]!r}", "unknown_model")

    @router.post(
        f"{MODEL}/experience",
        responses=refusals(400, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra={**documented_body(Report), "parameters": MODEL_PARAMETERS},
    )
    async def experience(request: Request) -> Receipt:
        """Take in what runs report: whole or not at all, and each evaluation once, however often it comes."""
        check_model(request)
        check_content(request, JSON)
        data = await request.body()
        async with reading:
            return await to_thread.run_sync(taken, learning, data)

    async def centre(request: Request) -> Response:
        """Send what the next draws are to be around; of a version, what its draws are around."""
        check_model(request)
        version = request.path_params.get("version", "")
        number = int(version) if version.isascii() and version.isdigit() and len(version) < 16 else 0
        found = learning.find(number if version else None)
        if found is None:
            raise Refusal(404, "there is no such version, or not any more", "unknown_model")
        return file_response(request, found.centre, found.sha256, str(found.version))

    file = documented_file("A policy file; its provenance has version, exploration (a standard deviation), potential.")
    add_model_route(router, "/centre", centre, response_class=Response, responses=file)
    return router


def taken(learning: Learning, data: bytes) -> Receipt:
    """Read a report and take it in.

    Raises:
        Refusal: 400, 409, 413, 422 or 503, with the reason.
    """
    report = read_object(Report, data)
    if learning.failure:
        raise busy("nothing is learned any more; the log says why", 60)
    try:
        return learning.ledger.take(report)
    except ConflictError as error:
        raise Refusal(409, str(error), "conflict") from None
    except BadInputError as error:
        raise wrong_content(str(error)) from None


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
        last = learning.last
        for name, text, value in (
            ("version", "The newest version.", learning.version),
            ("stopped", "1 where nothing is learned any more.", float(bool(learning.failure))),
            ("update_seconds", "Of the last update.", last.get("seconds", 0.0)),
            ("improvement", "Of the students of the last update, mean; potential.", last.get("improvement", 0.0)),
            ("clip_fraction", "Of the last update's decisions that PPO clipped.", last.get("clip_fraction", 0.0)),
        ):
            gauge = GaugeMetricFamily(f"rltemp_learning_{name}", text, labels=["model"])
            gauge.add_metric(labels, value)
            yield gauge
