"""Carries reports to a service and brings its newest version back, on a thread of its own: a run never waits for long.

Reports wait in bounded memory while the service is away, and the oldest go first where there are too many: they would
be stale. Whatever the service does costs the run that waits for it a bounded time, once.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rltemp.agents.online import Centre
from rltemp.agents.reports import Receipt, Report, parts
from rltemp.errors import ArtifactRefusedError, BadInputError, ExchangeFailedError, RequestRefusedError, one_line
from rltemp.remote.addresses import read_token
from rltemp.remote.connection import Answer
from rltemp.remote.exchange import Exchange

DEADLINE = 5.0
"""Seconds of one exchange; nobody waits for it that long."""
WAITING_BYTES = 16 * 2**20
SHORTEST, LONGEST = 1.0, 60.0
"""Seconds of the pauses while the service is away; drawn at random up to a bound that doubles."""


def courier(url: str, model: str, token_file: Path | None, say: Callable[[str], None]) -> Courier:
    """A courier to the service at a URL, begun.

    Raises:
        BadInputError: Where URL, token file or model cannot be used; a service that is away is none of these.
    """
    exchange = Exchange(url, None if token_file is None else read_token(token_file))
    made = Courier(exchange, model, say)
    made.begin()
    return made


class Courier:
    """Between the runs of one process and the model that learns from them.

    Args:
        exchange: With the service.
        model: The model's name there.
        say: Told when the service goes away and comes back, one line each.

    Attributes:
        newest: The newest version that was brought, None before there is one.
        counts: Records by fate (accepted, known, stale, refused, dropped), failed exchanges, versions.
    """

    def __init__(self, exchange: Exchange, model: str, say: Callable[[str], None]) -> None:
        self.newest: Centre | None = None
        self.counts: Counter[str] = Counter()
        self._exchange, self._model, self._say = exchange, quote(model, safe=""), say
        self._etag = ""
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._wanted = self._ended = False
        self._away = False
        self._thread = threading.Thread(target=self._work, name="rltemp-courier", daemon=True)

    def begin(self) -> None:
        """Ask for the newest version once, and start the thread.

        Raises:
            BadInputError: Where the service says that this is a mistake: no such model, a wrong token.
            ArtifactRefusedError: Where it sends something else than a version.
        """
        try:
            self._follow()
        except RequestRefusedError as error:
            raise BadInputError(
                f"cannot learn from {self._model}: {error}. Start the service with --learn {self._model}, and give "
                "--controller-token-file where it needs one"
            ) from None
        except ExchangeFailedError as error:
            self._lost(str(error))
        self._thread.start()

    def post(self, report: Report) -> None:
        """Have a report carried; returns at once."""
        pieces = [(part.model_dump_json().encode(), len(part.records)) for part in parts(report)]
        with self._changed:
            self._waiting.extend(pieces)
            self._bytes += sum(len(data) for data, _ in pieces)
            while self._bytes > WAITING_BYTES:
                self._drop_oldest()
            self._wanted = True
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until all is carried and the newest version is here: so long at most, and not while it is away."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._away or not self._wanted, seconds)

    def close(self, seconds: float) -> None:
        """Carry what waits, within so many seconds where the service answers; what is left is dropped, and counted."""
        self.settle(seconds)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            while self._waiting:
                self._drop_oldest()
        self._exchange.close()

    @property
    def waiting(self) -> int:
        """Records that wait."""
        with self._changed:
            return sum(count for _, count in self._waiting)

    def _drop_oldest(self) -> None:
        data, count = self._waiting.popleft()
        self._bytes -= len(data)
        self.counts["dropped"] += count

    def _work(self) -> None:
        # Not the global generator: a run's random numbers must not depend on a service.
        doublings, draw = 0, random.Random().uniform
        while self._waited(0.0 if not doublings else draw(0, min(LONGEST, SHORTEST * 2**doublings))):
            try:
                self._carry()
                self._follow()
            except (ExchangeFailedError, RequestRefusedError, ArtifactRefusedError) as error:
                doublings = min(doublings + 1, 10)
                self._lost(str(error))
                continue
            doublings = 0
            self._found()

    def _waited(self, pause: float) -> bool:
        """Wait for something to do, and for the end of a pause; False at the end."""
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._ended, pause)
            self._changed.wait_for(lambda: self._wanted or self._ended)
            return not self._ended

    def _carry(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._ended:
                    return
                first = self._waiting[0]
            data, count = first
            answer = self._ask(
                "POST", f"/v2/models/{self._model}/experience", data, {"Content-Type": "application/json"}
            )
            with self._changed:
                if self._waiting and self._waiting[0] is first:
                    self._waiting.popleft()
                    self._bytes -= len(data)
                self._count(answer, count)

    def _count(self, answer: Answer, count: int) -> None:
        if answer.status != 200:
            self.counts["refused"] += count
            self._say(f"{count} records were refused: {one_line(answer.body[:300].decode('utf-8', 'replace'))}")
            return
        try:
            receipt = Receipt.model_validate_json(answer.body)
        except ValueError:
            raise ExchangeFailedError("its receipt cannot be read") from None
        self.counts.update({name: getattr(receipt, name) for name in ("accepted", "known", "stale")})

    def _follow(self) -> None:
        headers = {"If-None-Match": self._etag} if self._etag else {}
        answer = self._ask("GET", f"/v2/models/{self._model}/centre", b"", headers)
        if answer.status == 200:
            self.newest = Centre.of(answer.body, self._model)
            self._etag = answer.headers.get("etag", "")
            self.counts["versions"] += 1

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """One exchange; an answer that a report is wrong is one, too: the next report may be right."""
        allowed = (304,) if method == "GET" else (400, 409, 413, 422)
        return self._exchange.ask(method, path, body, headers, deadline=DEADLINE).checked(*allowed)

    def _lost(self, reason: str) -> None:
        with self._changed:
            self.counts["failures"] += 1
            first, self._away = not self._away, True
            self._changed.notify_all()
        if first:
            self._say(f"the service does not take part ({reason}); runs go on, and it is asked again now and then")

    def _found(self) -> None:
        with self._changed:
            back, self._away = self._away, False
            self._wanted = bool(self._waiting)
            self._changed.notify_all()
        if back:
            self._say("the service takes part again")
