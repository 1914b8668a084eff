"""Writes results to the disk from the event loop; results that arrive during a sync are synced together."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from vllm_cli.batch.output_file import OutputFile
from vllm_cli.batch.result_line import Result


class _Waiting(NamedTuple):
    result: Result
    written: asyncio.Future[None]


class ResultWriter:
    """One task appends to the file; `write` returns when the result is synced."""

    def __init__(self, file: OutputFile, on_written: Callable[[Result], None]) -> None:
        self._file = file
        self._on_written = on_written
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name="result-writer")

    async def write(self, result: Result) -> None:
        """Raises the error of the write."""
        waiting = _Waiting(result, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        await waiting.written

    async def close(self) -> None:
        """Writes the rest, also results of cancelled callers."""
        await self._queue.join()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await asyncio.to_thread(self._file.append, [waiting.result for waiting in batch])
            except Exception as err:  # noqa: BLE001 - `write` raises it
                _settle(batch, err)
            else:
                for waiting in batch:
                    self._on_written(waiting.result)
                _settle(batch, None)
            for _ in batch:
                self._queue.task_done()


def _settle(batch: list[_Waiting], err: Exception | None) -> None:
    for waiting in batch:
        if waiting.written.done():
            continue
        if err is None:
            waiting.written.set_result(None)
        else:
            waiting.written.set_exception(err)
