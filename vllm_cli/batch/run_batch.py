"""Runs `run-batch`: opens the files, starts a server if needed, sends the requests, returns a summary."""

import asyncio
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, NamedTuple

from envs.registry import env
from startup.ground.serve_words import ServeWords
from startup.words.errors import InputError
from vllm_cli.batch.requests import InputFile, LinePlace, open_input
from vllm_cli.batch.results import Ending, OutputFile, Tally
from vllm_cli.batch.sender import Sender
from vllm_cli.client.server import Server, explain_failures
from vllm_cli.client.waiting import Readiness
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.interruption import Interrupted, run_interruptibly
from vllm_cli.private_server import start_private_server
from vllm_cli.supervised_command import CommandEndedError
from vllm_cli.terminal import Reporter

SOME_FAILED: Final = 5
"""The exit code if requests failed. Used only with --fail-on-error, because scripts may use `set -e`."""
NOT_COMPLETE: Final = 1
_OWN_SERVER_CONCURRENCY: Final = 256
"""Most requests in flight to a server that the batch starts. The engine runs fewer, so that some wait."""
_OTHER_SERVER_CONCURRENCY: Final = 32
_CONNECT_TIMEOUT_S: Final = 30.0
_UPLOAD_TIMEOUT_S: Final = 1000.0
_POLL_S: Final = 0.2
_INTERVAL_S: Final = 10.0
"""Seconds between two lines of progress if the output is not a terminal."""
_READY_TIMEOUT_S: Final = 7 * 24 * 3600.0
"""A week, because the server itself limits the time of its start."""
_EMBEDDED: Final = "embedded"
_DEFAULTS: Final = (
    "--engine", _EMBEDDED, "--log-level", "WARNING", "--uvicorn-log-level", "warning", "--disable-uvicorn-access-log",
    "--shutdown-timeout", "2",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The files, the server, and how requests are sent."""

    input_file: str
    """A path, `-` for standard input, or an http(s) URL."""
    output_file: str
    """A path, or an http(s) URL that takes PUT."""
    output_tmp_dir: Path | None = None
    """Where results for an output URL are kept until they are uploaded."""
    server: Server | None = None
    """The running server. If None, the batch starts a server."""
    serve_words: tuple[str, ...] = ()
    """MODEL and flags of the server that the batch starts."""
    model: str | None = None
    """The model of requests that name no model. Only for a running server."""
    max_concurrency: int | None = None
    retry_timeout_s: float = 600.0
    """Seconds after which a request is no longer retried."""
    is_overwriting: bool = False
    fails_on_error: bool = False
    """Whether failed requests change the exit code."""
    is_quiet: bool = False

    @property
    def has_output_url(self) -> bool:
        return self.output_file.startswith(("http://", "https://"))

    @property
    def num_in_flight(self) -> int:
        if self.max_concurrency is not None:
            return self.max_concurrency
        return _OTHER_SERVER_CONCURRENCY if self.server else _OWN_SERVER_CONCURRENCY


class ServerStartError(Exception):
    """The server exited before it was ready. Its own log has the reason."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the server ended with exit code {exit_code} before it was ready")
        self.exit_code = exit_code


class BatchOutcome(NamedTuple):
    """How a run ended."""

    exit_code: int
    summary: dict[str, Any]


def run_batch(config: BatchConfig) -> BatchOutcome:
    """Sends every request of the input that has no result in the output."""
    with ExitStack() as stack:
        batch = stack.enter_context(open_input(config.input_file))
        output = stack.enter_context(OutputFile(_output_path(config), is_overwriting=config.is_overwriting))
        return _Run(config, batch, output).run()


def _output_path(config: BatchConfig) -> Path:
    """The path for the results. For an output URL, the file is in a new folder until it is uploaded."""
    if config.has_output_url:
        return Path(mkdtemp(prefix="vllm-cli-batch-", dir=config.output_tmp_dir), "answers.jsonl")
    path = Path(config.output_file)
    if config.output_file in ("", "-") or (path.exists() and not path.is_file()):
        message = "must be a file, so that a second run can continue it."
        raise InputError(f"--output-file {config.output_file!r} {message}")
    return path


class _Run:
    """One run of `run-batch`, on the main thread."""

    def __init__(self, config: BatchConfig, batch: InputFile, output: OutputFile) -> None:
        self._config = config
        self._batch = batch
        self._output = output

    def run(self) -> BatchOutcome:
        places = self._plan()
        recorded = self._output.recorded
        self._tally = Tally(
            num_total=len(self._batch.places),
            num_skipped=len(recorded),
            num_failed_before=sum(result.is_failed for result in recorded.values()),
        )
        self._reporter = Reporter(is_quiet=self._config.is_quiet, interval_s=_INTERVAL_S)
        if recorded:
            self._reporter.note(f"{len(recorded)} of {len(self._batch.places)} requests are done already")
        with closing(self._reporter):
            try:
                if places:
                    self._serve_and_send(places)
                self._finish()
            except Interrupted as interrupted:
                return self._end("interrupted", interrupted.exit_code)
            except ServerStartError as err:
                return self._end("incomplete", err.exit_code)
            except (ConnectionFailedError, CommandEndedError) as err:
                self._reporter.close()
                err.show()
                return self._end("incomplete", NOT_COMPLETE)
        has_failed = self._tally.num_failed or self._tally.num_failed_before
        return self._end("completed", SOME_FAILED if has_failed and self._config.fails_on_error else 0)

    def _plan(self) -> list[LinePlace]:
        """The requests that have no result yet."""
        recorded = self._output.recorded
        self._output.check_same_batch({place.custom_id: place.id for place in self._batch.places})
        return [place for place in self._batch.places if place.custom_id not in recorded]

    def _serve_and_send(self, places: list[LinePlace]) -> None:
        config = self._config
        if config.server is not None:
            _check_reachable(config.server)
            self._reporter.note(f"Sending {len(places)} requests to {config.server.address}")
            run_interruptibly(self._send_all(places, config.server, lambda: None))
            return
        words = config.serve_words
        with start_private_server(words, {}, flags=default_flags(words), keeps_log=False) as server:
            self._reporter.note("Starting the server")
            if server.wait_ready(_READY_TIMEOUT_S, _ignore).ending != "ready":
                raise ServerStartError(server.command.wait())
            self._reporter.note(f"Sending {len(places)} requests to it")
            run_interruptibly(self._send_all(places, Server(server.address), server.command.ensure_alive))

    async def _send_all(self, places: list[LinePlace], server: Server, ensure_server: Callable[[], None]) -> None:
        """Sends the requests that have no result. Written results stay if an error ends the run early.

        Raises:
            ConnectionFailedError: the server is lost, or the disk is full.
            CommandEndedError: raised by `ensure_server` if the server has exited.
        """
        self._tally.begin_s = time.monotonic()
        num_workers = min(self._config.num_in_flight, len(places))
        async with Sender(
            server,
            model=self._config.model,
            max_concurrency=num_workers,
            retry_timeout_s=self._config.retry_timeout_s,
        ) as sender:
            left = iter(places)
            working = asyncio.gather(*(self._work(left, sender) for _ in range(num_workers)))
            watching = asyncio.create_task(_watch(ensure_server), name="watch-server")
            both: set[asyncio.Future[Any]] = {working, watching}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                working.cancel()
                watching.cancel()
                outcomes = await asyncio.gather(working, watching, return_exceptions=True)
                self._tally.num_retries = sender.num_retries
        _raise_first(outcomes)

    async def _work(self, left: Iterator[LinePlace], sender: Sender) -> None:
        for place in left:
            result = await sender.send(self._batch.read(place), place)
            self._output.append(result)
            self._tally.count(result)
            self._reporter.update(self._tally.describe())

    def _finish(self) -> None:
        """Puts the results into the requests' order, as vLLM does. Uploads them if the output is a URL."""
        self._output.sort(place.custom_id for place in self._batch.places)
        if self._config.has_output_url:
            _upload(self._output.path, self._config.output_file)
            shutil.rmtree(self._output.path.parent)

    def _end(self, ending: Ending, exit_code: int) -> BatchOutcome:
        tally = self._tally
        failed = tally.num_failed + tally.num_failed_before
        text = f"{tally.num_total - tally.num_left} of {tally.num_total} requests are done, {failed} of them failed"
        if ending == "completed":
            self._reporter.note(f"{text}: {self._config.output_file}")
        elif self._config.has_output_url:
            self._reporter.note(f"{text}: the results are in {self._output.path}")
        else:
            self._reporter.note(f"{text}. Run the same command again to continue")
        summary = {**tally.to_dict(ending), "output_file": self._config.output_file}
        return BatchOutcome(exit_code, summary)


def default_flags(serve_words: Sequence[str]) -> tuple[str, ...]:
    """Flags that choose the embedded engine and fewer log lines. Empty if the user chose another engine."""
    engine = ServeWords(serve_words).own.get("--engine") or env.VCLI_ENGINE.raw
    return _DEFAULTS if engine in (None, _EMBEDDED) else ()


def _upload(path: Path, url: str) -> None:
    with path.open("rb") as file:
        headers = {"Content-Length": str(path.stat().st_size), "Content-Type": "application/jsonl"}
        request = urllib.request.Request(url, data=file, headers=headers, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=_UPLOAD_TIMEOUT_S).close()
        except (HTTPException, OSError) as err:
            raise ConnectionFailedError(f"{url} does not take the results ({err}).") from err


def _check_reachable(server: Server) -> None:
    """Raises ConnectionFailedError if nothing accepts connections at the server's address."""
    with explain_failures(server.address), closing(server.address.connect(_CONNECT_TIMEOUT_S)) as connection:
        connection.connect()


def _ignore(_: Readiness, __: float) -> None:
    """Shows no progress, because the starting server shows its own."""


async def _watch(ensure_server: Callable[[], None]) -> None:
    while True:
        ensure_server()
        await asyncio.sleep(_POLL_S)


def _raise_first(outcomes: Sequence[object]) -> None:
    """Raises the error that ended one of the tasks. The other task's outcome is its cancellation."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
