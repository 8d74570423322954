"""Carries reports to a service and brings its newest version back, on a thread: no run waits for long.

Reports wait in bounded memory while the service is away, and the oldest go first where there are too many: they would
be stale.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque

from rltemp.agents.online import ParameterDistribution
from rltemp.agents.reports import FATES, Receipt, Report, parts
from rltemp.errors import BadInputError, ExchangeFailedError, one_line
from rltemp.remote.http_client import Answer, HttpClient
from rltemp.remote.poller import Poller
from rltemp.remote.served_model import model_path

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""Of one request; nobody waits for it that long."""
WAITING_BYTES = 16 * 2**20


class ReportClient:
    """Between the runs of one process and the model that learns from them.

    Args:
        client: Of the service.
        model: The model's name there.

    Attributes:
        newest: The newest version that was brought, None before there is one.
        counts: Records by what became of them: accepted, known, stale, refused, dropped.
    """

    def __init__(self, client: HttpClient, model: str) -> None:
        self.newest: ParameterDistribution | None = None
        self.counts: Counter[str] = Counter()
        self._client, self._model, self._path = client, model, model_path(model)
        self._etag = ""
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._lock = threading.Lock()
        meanwhile = "Runs go on; their reports wait and are sent later"
        self._poller = Poller(f"controller {client.url} ({model})", self._exchange, None, meanwhile)

    def start(self, seconds: float, strict: bool = False) -> None:
        """Ask for the newest version, and wait for it: so long at most.

        Raises:
            BadInputError: Where the service says that this is a mistake: an unknown model, a wrong token.
            TrainingStoppedError: With `strict`, where the service is away.
        """
        try:
            self._poller.start(seconds, strict)
        except BadInputError as error:
            raise BadInputError(f"{error}; the service needs --learn {self._model}") from None

    def post(self, report: Report) -> None:
        """Have a report carried; returns at once."""
        pieces = [(part.model_dump_json().encode(), len(part.records)) for part in parts(report)]
        with self._lock:
            self._waiting.extend(pieces)
            while sum(len(data) for data, _ in self._waiting) > WAITING_BYTES:
                self.counts["dropped"] += self._waiting.popleft()[1]
        self._poller.wake()

    def settle(self, seconds: float) -> None:
        """Wait until all is carried and the newest version is here: so long at most, and not while it is away."""
        self._poller.settle(seconds)

    def close(self, seconds: float) -> None:
        """Carry what waits, within so many seconds where the service answers; what is left is dropped, and counted."""
        self.settle(seconds)
        self._poller.close()
        with self._lock:
            self.counts["dropped"] += sum(count for _, count in self._waiting)
            self._waiting.clear()
        self._client.close()

    def policy(self) -> bytes:
        """The newest policy as a file, whose checks are its reader's; asks the service, and waits for it.

        Raises:
            ExchangeFailedError: Where it is away.
        """
        return self._client.request("GET", f"{self._path}/policy", seconds=REQUEST_SECONDS).body

    @property
    def waiting(self) -> int:
        """Records that wait."""
        with self._lock:
            return sum(count for _, count in self._waiting)

    @property
    def failures(self) -> int:
        """Exchanges that failed."""
        return self._poller.failures

    def _exchange(self) -> None:
        """Carry all that waits, and look for a new version, on the poller's thread."""
        path, headers = f"{self._path}/experience", {"Content-Type": "application/json"}
        while (piece := self._first()) is not None:
            # That a report is wrong is an answer, too: the next may be right.
            allowed = 400, 409, 413, 422
            answer = self._client.request("POST", path, piece[0], headers, seconds=REQUEST_SECONDS, allowed=allowed)
            self._carried(piece, answer)
        path, headers = f"{self._path}/centre", {"If-None-Match": self._etag} if self._etag else {}
        answer = self._client.request("GET", path, headers=headers, seconds=REQUEST_SECONDS, allowed=(304,))
        if answer.status == 200:
            self.newest = ParameterDistribution.of(answer.body, self._model)
            self._etag = answer.headers.get("etag", "")

    def _first(self) -> tuple[bytes, int] | None:
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def _carried(self, piece: tuple[bytes, int], answer: Answer) -> None:
        with self._lock:
            if self._waiting and self._waiting[0] is piece:
                self._waiting.popleft()
        if answer.status != 200:
            self.counts["refused"] += piece[1]
            said = one_line(answer.body[:300].decode("utf-8", "replace"))
            log.warning(f"{piece[1]} records were refused: {said}")
            return
        try:
            receipt = Receipt.model_validate_json(answer.body)
        except ValueError:
            raise ExchangeFailedError("its receipt cannot be read") from None
        self.counts.update({fate: getattr(receipt, fate) for fate in FATES})
