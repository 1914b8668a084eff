"""Generates responses in the background. Clients follow, retrieve and cancel them by id."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from server.apis.responses.archive import ResponseArchive
from server.apis.responses.response_run import Response, ResponseRun
from server.operation.admission import RequestContext, RunningRequests
from server.terms.http_body.response_body import encode_named_event


class BackgroundResponse:
    """One background response. Its task runs until the response is stored."""

    def __init__(self, run: ResponseRun, *, keeps_events: bool) -> None:
        self.run = run
        self._queued = run.response
        self.events: list[bytes] | None = [] if keeps_events else None
        """The encoded events so far, in the order of their sequence numbers. None if events are not kept."""
        self._has_ended = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def response(self) -> Response:
        """The response that clients get. As in vLLM, its status is `queued` until it has ended."""
        current = self.run.response
        return self._queued if current["status"] == "in_progress" else current

    async def start(self, generate: Callable[["BackgroundResponse"], Coroutine[Any, Any, None]]) -> None:
        """Starts the task. Returns when it runs, because a task that is cancelled earlier would never run."""
        self._task = asyncio.create_task(generate(self), name="background-response")
        await asyncio.sleep(0)

    def publish(self, event: bytes) -> None:
        """Adds an encoded event for the clients that follow the response."""
        if self.events is not None:
            self.events.append(event)
            self._wake()

    def end(self) -> None:
        """Ends the streams of the clients that follow the response."""
        self._has_ended = True
        self._wake()

    async def follow(self, first: int) -> AsyncGenerator[bytes, None]:
        """Yields the events from the position `first` on, as they arrive."""
        assert self.events is not None
        while True:
            news = self._news
            for event in self.events[first:]:
                yield event
                first += 1
            if self._has_ended and first >= len(self.events):
                return
            await news.wait()

    async def cancel(self) -> None:
        """Cancels the generation if it still runs. Returns when the response is stored."""
        assert self._task is not None
        if self.response["status"] == "queued":
            self._task.cancel()
        await asyncio.wait((self._task,))

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class BackgroundResponses:
    """The running background responses of one server. Used on the event loop."""

    def __init__(self, running: RunningRequests, archive: ResponseArchive) -> None:
        """`running` counts these responses, so that a server that shuts down waits for them."""
        self._running = running
        self._archive = archive
        self._responses: dict[str, BackgroundResponse] = {}

    def find(self, response_id: str) -> BackgroundResponse | None:
        """Returns the running response with this id. None if the id is unknown or the response has ended."""
        return self._responses.get(response_id)

    async def start(self, run: ResponseRun, context: RequestContext, *, keeps_events: bool) -> BackgroundResponse:
        """Starts a task that generates a response. The task takes over `context.lease`, and releases it."""

        async def generate(response: BackgroundResponse) -> None:
            with self._running.hold():
                try:
                    await self._generate(response)
                finally:
                    response.end()
                    context.lease.release()
                    del self._responses[run.response["id"]]

        context.lease = context.lease.hand_over()  # without an `await` until the task exists that releases the lease
        response = BackgroundResponse(run, keeps_events=keeps_events)
        self._responses[run.response["id"]] = response
        await response.start(generate)
        return response

    async def _generate(self, response: BackgroundResponse) -> None:
        run = response.run
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    if response.events is not None:
                        response.publish(await self._archive.encode_event(run, event))
        except asyncio.CancelledError:
            run.set_status("cancelled")
        except Exception as err:  # noqa: BLE001
            run.fail(err)
        last = await self._encode_last(run)
        try:
            await self._archive.keep(run, None if response.events is None else (*response.events, last))
        finally:
            response.publish(last)

    async def _encode_last(self, run: ResponseRun) -> bytes:
        """Encodes the last event. If this fails, the event has only the response's id, status and error."""
        event = run.last_event()
        try:
            return await self._archive.encode_event(run, event)
        except Exception as err:  # noqa: BLE001
            run.fail(err)
            response = {name: run.response[name] for name in ("id", "object", "created_at", "status", "error")}
            return encode_named_event(event | {"type": "response.failed", "response": response})
