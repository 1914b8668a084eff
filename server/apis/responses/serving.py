"""Answers /v1/responses."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace

import msgspec

from base.errors import RequestError
from server.apis.responses.archive import LARGE_BYTES, ResponseArchive, invalid_response
from server.apis.responses.background import BackgroundResponses
from server.apis.responses.conversion import Message, build_conversation, own_field_names, to_chat_request
from server.apis.responses.input_items import ItemPage
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.response_run import Response, ResponseRun
from server.apis.responses.tools import ResponseTools
from server.generation.chat import ChatRunner
from server.generation.request import ChatRequest
from server.operation.admission import RequestContext, RunningRequests
from server.operation.models import Inference
from server.terms.http_body.request_body import check_limits
from server.terms.limits import LimitsConfig


class ResponsesServing:
    """Serves the Responses API. A server has one such object. Every method runs on the event loop."""

    def __init__(
        self,
        inference: Inference,
        runner: ChatRunner,
        archive: ResponseArchive,
        running: RunningRequests,
        limits: LimitsConfig,
    ) -> None:
        self._inference = inference
        self._runner = runner
        self._archive = archive
        self._limits = limits
        self._background = BackgroundResponses(running, archive)

    async def create(
        self, request: ResponsesRequest, context: RequestContext
    ) -> Response | AsyncGenerator[bytes, None]:
        """Generates the response, or a stream of events. Finds faults of the request before the first event.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed. In streams and in the background, the response becomes `failed`.
        """
        self._inference.models.check_generative("Responses", request.model)
        if request.background:
            return await self._create_in_background(request, context)
        run = await self._prepare(request, context)
        if request.stream:
            return self._stream(run)
        with own_field_names():
            await run.complete()
        await self._archive.keep(run)
        return run.response

    async def retrieve(self, response_id: str) -> bytes:
        """Returns a response as JSON, even if it still runs. Raises RequestError if there is none."""
        current = self._background.find(response_id)
        if current is not None:
            return msgspec.json.encode(current.response)
        return self._archive.find(response_id).body

    async def follow(self, response_id: str, starting_after: int | None) -> AsyncGenerator[bytes, None]:
        """Returns the events of a background response after number `starting_after`, as they arrive.

        Raises:
            RequestError: there is no such response, or it was created without `stream`.
        """
        first = 0 if starting_after is None else max(starting_after + 1, 0)
        current = self._background.find(response_id)
        kept = current or self._archive.find(response_id)
        if kept.events is None:
            raise invalid_response(
                f"The response '{response_id}' has no stream: it was not created with `background` and `stream`.",
                "response_id",
            )
        return _replay(kept.events[first:]) if current is None else current.follow(first)

    async def cancel(self, response_id: str) -> bytes:
        """Cancels a background response, and returns it as JSON. Raises RequestError if it does not run."""
        current = self._background.find(response_id)
        if current is None:
            self._archive.find(response_id)
        if current is None or current.response["status"] != "queued":
            raise invalid_response("Cannot cancel a synchronous response.", "response_id")
        await current.cancel()
        return msgspec.json.encode(current.response)

    async def delete(self, response_id: str) -> None:
        """Drops a response, which is cancelled first if it runs. Raises RequestError if there is none."""
        current = self._background.find(response_id)
        if current is not None:
            await current.cancel()
        self._archive.delete(response_id)

    async def input_items(self, response_id: str, page: ItemPage) -> bytes:
        """Returns the model's input items for a response as a JSON list.

        Raises:
            RequestError: there is no such response, or no such page.
        """
        current = self._background.find(response_id)
        stored = self._archive.find(response_id) if current is None else await self._archive.encode(current.run)
        items = await self._archive.input_items(stored)
        return await self._inference.renderer.pools.run(page.cut, items)

    async def _prepare(self, request: ResponsesRequest, context: RequestContext) -> ResponseRun:
        """Renders the request. The engine receives it when the run is first used.

        Raises:
            RequestError: the request is invalid.
        """
        history = await self._history(request.previous_response_id, context)
        run_unless = self._inference.renderer.pools.run_unless
        tools, chat_request = await run_unless(context.is_small, self._convert, request, history)
        context.hold(chat_request)
        with own_field_names():
            chat = await self._runner.start(chat_request, context, id_prefix="resp")
        return ResponseRun(request, chat, tools, self._inference)

    def _convert(self, request: ResponsesRequest, history: list[Message]) -> tuple[ResponseTools, ChatRequest]:
        tools = ResponseTools(request)
        messages = build_conversation(request.instructions, history, request.items)
        chat_request = to_chat_request(request, messages, tools)
        with own_field_names():
            check_limits(chat_request, self._limits)
        return tools, chat_request

    async def _history(self, previous_id: str | None, context: RequestContext) -> list[Message]:
        """Returns the conversation up to the previous response. Adds its bytes to the request's lease."""
        if previous_id is None:
            return []
        if self._background.find(previous_id) is not None:
            raise invalid_response(f"The response '{previous_id}' is not complete yet.", "previous_response_id")
        stored = self._archive.find(previous_id)
        context.lease.add_bytes(len(stored.history))
        context.is_small = context.is_small and len(stored.history) < LARGE_BYTES
        return await self._archive.decode_history(stored)

    async def _create_in_background(
        self, request: ResponsesRequest, context: RequestContext
    ) -> Response | AsyncGenerator[bytes, None]:
        if not self._archive.is_enabled:
            raise invalid_response(
                "This server does not support `store=True` and therefore does not support the background mode.",
                "background",
            )
        own_context = replace(context, held=[])
        run = await self._prepare(request, own_context)
        response = await self._background.start(run, own_context, keeps_events=bool(request.stream))
        return response.follow(0) if request.stream else response.response

    async def _stream(self, run: ResponseRun) -> AsyncGenerator[bytes, None]:
        has_begun = False
        try:
            with own_field_names():
                async with aclosing(run.events()) as events:
                    async for event in events:
                        has_begun = True
                        yield await self._archive.encode_event(run, event)
            await self._archive.keep(run)
        except Exception as err:
            if isinstance(err, RequestError) and not has_begun:
                raise
            run.fail(err)
        yield await self._archive.encode_event(run, run.last_event())


async def _replay(events: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for event in events:
        yield event
