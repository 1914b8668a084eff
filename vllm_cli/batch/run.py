"""Runs `run-batch`: opens the files, starts the server, sends the requests, returns the summary."""

import asyncio
from contextlib import ExitStack, closing
from typing import Any, Final, NamedTuple

from vllm_cli.batch.config import BatchConfig
from vllm_cli.batch.dispatch import Dispatch
from vllm_cli.batch.input_file import InputFile, LinePlace, open_input
from vllm_cli.batch.output_destination import OutputDestination
from vllm_cli.batch.output_file import OutputFile, check_same_batch
from vllm_cli.batch.own_server import OwnServer, ServerStartError, start_own_server
from vllm_cli.batch.progress import BatchProgress
from vllm_cli.batch.tally import Ending, Tally
from vllm_cli.client.readiness import Readiness
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.errors import ConnectionFailedError

SOME_FAILED: Final = 5
"""Only with --fail-on-error: by default, scripts under `set -e` use the answers that exist."""
NOT_COMPLETE: Final = 1
_CONNECT_TIMEOUT_S: Final = 30.0


class BatchOutcome(NamedTuple):
    """How a run ended."""

    exit_code: int
    summary: dict[str, Any]


def run_batch(config: BatchConfig) -> BatchOutcome:
    """Sends every request of the input that has no result in the output."""
    with ExitStack() as stack:
        batch = stack.enter_context(open_input(config.input_file))
        destination = stack.enter_context(closing(OutputDestination.of(config)))
        output = stack.enter_context(OutputFile(destination.path, is_overwriting=config.is_overwriting))
        return _Run(config, batch, output, destination).run()


class _Run:
    """One run; on the main thread."""

    def __init__(
        self, config: BatchConfig, batch: InputFile, output: OutputFile, destination: OutputDestination
    ) -> None:
        self._config = config
        self._batch = batch
        self._output = output
        self._destination = destination

    def run(self) -> BatchOutcome:
        places = self._plan()
        recorded = self._output.recorded
        self._tally = Tally(
            num_total=len(self._batch.places),
            num_skipped=len(recorded),
            num_failed_before=sum(result.is_failed for result in recorded.values()),
        )
        self._progress = BatchProgress(self._tally, is_quiet=self._config.is_quiet)
        if recorded:
            self._progress.report(f"{len(recorded)} of {len(self._batch.places)} requests are done already")
        with closing(self._progress):
            try:
                signal_number = self._serve_and_dispatch(places) if places else None
                if signal_number is None:
                    self._finish()
            except ServerStartError as err:
                return self._end("incomplete", err.exit_code)
            except ConnectionFailedError as err:
                self._progress.close()
                err.show()
                return self._end("incomplete", NOT_COMPLETE)
        if signal_number is not None:
            return self._end("interrupted", 128 + signal_number)
        has_failed = self._tally.num_failed or self._tally.num_failed_before
        return self._end("completed", SOME_FAILED if has_failed and self._config.fails_on_error else 0)

    def _plan(self) -> list[LinePlace]:
        """The requests to send; with --retry-failed, removes failed results from the output first."""
        ids = {place.custom_id: place.id for place in self._batch.places}
        check_same_batch(self._output.path, self._output.recorded, ids)
        if self._config.retries_failed:
            self._output.keep([c for c, result in self._output.recorded.items() if not result.is_failed])
        recorded = self._output.recorded
        return [place for place in self._batch.places if place.custom_id not in recorded]

    def _serve_and_dispatch(self, places: list[LinePlace]) -> int | None:
        address = self._config.address
        if address is not None:
            _check_reachable(address)
            return self._dispatch(places, address, None)
        with start_own_server(self._config.serve_words) as server:
            self._progress.report("Starting the server")
            server.wait_ready(_ignore)
            return self._dispatch(places, server.address, server)

    def _dispatch(self, places: list[LinePlace], address: ServerAddress, server: OwnServer | None) -> int | None:
        self._progress.report(f"Sending {len(places)} requests to {address if server is None else 'it'}")
        self._progress.begin()
        dispatch = Dispatch(
            batch=self._batch,
            places=places,
            output=self._output,
            address=address,
            ensure_server=server.ensure_alive if server else lambda: None,
            tally=self._tally,
            progress=self._progress,
            config=self._config,
        )
        return asyncio.run(dispatch.run())

    def _finish(self) -> None:
        """Sorts the results in the order of the requests, as vLLM does, and uploads them."""
        self._output.keep(place.custom_id for place in self._batch.places)
        self._destination.deliver()

    def _end(self, ending: Ending, exit_code: int) -> BatchOutcome:
        tally = self._tally
        failed = tally.num_failed + tally.num_failed_before
        text = f"{tally.num_total - tally.num_left} of {tally.num_total} requests are done, {failed} of them failed"
        if ending == "completed":
            self._progress.report(f"{text}: {self._config.output_file}")
        else:
            self._progress.report(f"{text}; run the same command again to continue")
        summary = {**tally.to_dict(ending), "output_file": self._config.output_file}
        return BatchOutcome(exit_code, summary)


def _check_reachable(address: ServerAddress) -> None:
    """Before the first request, a server that does not answer is an error: the address is probably wrong."""
    with closing(address.connect(_CONNECT_TIMEOUT_S)) as connection:
        try:
            connection.connect()
        except OSError as err:
            reason = (err.strerror or str(err)).lower()
            raise ConnectionFailedError(f"No server answers at {address} ({reason}).") from err


def _ignore(_: Readiness, __: float) -> None:
    """Shows nothing: the starting server shows its own progress."""
