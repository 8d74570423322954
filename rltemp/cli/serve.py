"""`rltemp serve`: the options of the service, and how it starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import rltemp
from rltemp.agents.config import LearningOptions
from rltemp.cli.console import say
from rltemp.errors import BadInputError
from rltemp.io.command_words import at_least
from rltemp.optional_imports import import_library
from rltemp.training.options import RunOptions

if TYPE_CHECKING:
    from rltemp.service.learning import Learning
    from rltemp.service.repository import Repository


@dataclass(frozen=True)
class Serve(RunOptions):
    """Serve rules and policies over HTTP, for runs in other processes and other languages."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs --token-file."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which is printed."""
    models: tuple[str, ...] = ()
    """Policies to serve beside the shipped ones and the rules, as NAME=FILE; FILE may be pinned."""
    token_file: Path | None = None
    """File with the token that requests have to carry (Authorization: Bearer ...)."""
    max_request_mib: float = 8.0
    """Longest body of a request, in MiB."""
    timeout: float = 10.0
    """Seconds within which a request's body has to arrive."""
    log_requests: bool = False
    """Log a line for every request."""
    learn: str | None = None
    """Learn a policy under this name from what `rltemp distill --controller URL --learn` reports; needs --state."""
    state: Path | None = None
    """Folder of what is learned; the same command goes on from it."""
    learning: LearningOptions = field(default_factory=LearningOptions)

    command = "serve"

    @staticmethod
    def check_words(words: Sequence[str]) -> None:
        """Refuse a token on the command line, where every user of the machine can read it; nothing repeats it."""
        if any(word.partition("=")[0] == "--token" for word in words):
            raise BadInputError(
                "everybody on this machine can read a command line; write the token into a file and give --token-file"
            )

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        at_least(0, port=self.port)
        if self.port > 65535:
            raise BadInputError(f"--port must be at most 65535; got {self.port}")
        if not 0 < self.max_request_mib <= 1024:
            raise BadInputError(f"--max-request-mib must be above 0, at most 1024; got {self.max_request_mib:g}")
        if not 0 < self.timeout <= 3600:
            raise BadInputError(f"--timeout must be above 0, at most 3600 seconds; got {self.timeout:g}")
        _check_libraries()
        # The libraries of the extra are imported here, where it is known that they are there.
        from rltemp.service import host, logs, tokens  # FastAPI, of the extra `serve`
        from rltemp.service.app import Service
        from rltemp.service.experience import LearningCollector, learning_routes
        from rltemp.service.limits import Limits
        from rltemp.service.repository import Repository

        token = None if self.token_file is None else tokens.read_token(self.token_file)
        tokens.check_address(self.host, token)
        repository = Repository(_named(self.models))
        limits = Limits(request_bytes=int(self.max_request_mib * 2**20), body_seconds=self.timeout)
        logs.to_stderr()
        learning = self._learning(repository)
        routers = [learning_routes(learning)] if learning else []
        service = Service(repository, limits=limits, token=token, log_requests=self.log_requests, routers=routers)
        if learning:
            service.metrics.registry.register(LearningCollector(learning))
            learning.start()

        def ready(url: str) -> None:
            policies = {name: versions[-1].sha256 for name, versions in repository.policies().items()}
            logs.event("start", url=url, version=rltemp.__version__, policies=policies, token=token is not None)
            say(f"Serving {', '.join(policies)} and every closed-form rule at {url}")

        try:
            host.serve(service, self.host, self.port, limits=limits, on_ready=ready)
        finally:
            if learning:
                learning.stop()
            logs.event("stop")

    def _learning(self, repository: Repository) -> Learning | None:
        """The model that learns, where one is wanted."""
        if self.learn is None:
            if self.state is not None or self.learning != LearningOptions():
                raise BadInputError("--state and --learning.* go with --learn NAME; without it nothing is learned")
            return None
        if self.state is None:
            raise BadInputError("--learn needs --state FOLDER, where it keeps what is learned")
        from rltemp.service.learning import Learning  # Stable-Baselines3 takes a second
        from rltemp.service.repository import check_name

        options = self.learning
        name = check_name(self.learn)
        if name in repository.policies():
            raise BadInputError(f"--learn {name}: a policy is served under this name already. Give another")
        return Learning(
            name, options.layout(), options, self.state, repository, options.potential, options.keep_weights
        )


def _named(models: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for given in models:
        name, equals, file = given.partition("=")
        if not equals or not file:
            raise BadInputError(f"--models takes NAME=FILE; got {given!r}")
        if name in found:
            raise BadInputError(f"--models gives {name!r} twice")
        found[name] = file
    return found


def _check_libraries() -> None:
    for library in ("fastapi", "uvicorn", "prometheus_client", "pythonjsonlogger"):
        import_library(library, "rltemp serve", extra="serve")
