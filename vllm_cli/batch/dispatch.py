"""Keeps requests in flight until all are answered, the server or the disk fails, or a signal arrives."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from vllm_cli.batch.config import BatchConfig
from vllm_cli.batch.input_file import InputFile, LinePlace
from vllm_cli.batch.output_file import OutputFile
from vllm_cli.batch.progress import BatchProgress
from vllm_cli.batch.result_line import Result
from vllm_cli.batch.sender import Sender
from vllm_cli.batch.tally import Tally
from vllm_cli.batch.writer import ResultWriter
from vllm_cli.client.server_address import ServerAddress

_POLL_S: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Sends the remaining requests of a batch; runs on the event loop."""

    batch: InputFile
    places: Sequence[LinePlace]
    """The requests without a result."""
    output: OutputFile
    address: ServerAddress
    ensure_server: Callable[[], None]
    """Raises if the server is known to have exited."""
    tally: Tally
    progress: BatchProgress
    config: BatchConfig

    async def run(self) -> int | None:
        """Returns the signal that interrupted the run; None if every request has its result.

        Raises:
            ConnectionFailedError: the server is lost, or the disk is full; written results are kept.
        """
        with _caught_signals() as interrupted:
            async with Sender(self.address, self.config) as sender:
                writer = ResultWriter(self.output, self._on_written)
                left = iter(self.places)
                num_workers = min(self.config.num_in_flight, len(self.places))
                working = asyncio.gather(*(self._work(left, sender, writer) for _ in range(num_workers)))
                watching = asyncio.create_task(self._watch_server(), name="watch-server")
                try:
                    waits: set[asyncio.Future[Any]] = {working, watching, interrupted}
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (working, watching):
                        if not task.done():
                            task.cancel()
                    outcomes = await asyncio.gather(working, watching, return_exceptions=True)
                    await writer.close()
                    self.tally.num_retries = sender.num_retries
        if interrupted.done():
            return interrupted.result()
        _raise_first(outcomes)
        return None

    async def _work(self, left: Iterator[LinePlace], sender: Sender, writer: ResultWriter) -> None:
        for place in left:
            await writer.write(await sender.send(self.batch.read(place), place))

    async def _watch_server(self) -> None:
        while True:
            self.ensure_server()
            await asyncio.sleep(_POLL_S)

    def _on_written(self, result: Result) -> None:
        self.tally.count(result)
        self.progress.show()


@contextmanager
def _caught_signals() -> Iterator["asyncio.Future[int]"]:
    """A future that gets the number of the first SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[int] = loop.create_future()

    def record(number: int) -> None:
        for caught in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(caught)
        first.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, record, number)
    try:
        yield first
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _raise_first(outcomes: Sequence[object]) -> None:
    """Raises the error that ended the run, not the cancellation of the other task."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
