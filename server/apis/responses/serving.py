"""Answers /v1/responses."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from base.errors import RequestError
from server.apis.responses.conversion import build_conversation, own_field_names, to_chat_request
from server.apis.responses.output import ResponseEvent
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.response_run import Response, ResponseRun
from server.apis.responses.tools import ResponseTools
from server.generation.chat import ChatRunner
from server.generation.request import ChatRequest
from server.operation.admission import RequestContext
from server.operation.models import Inference
from server.terms.http_body.request_body import check_limits
from server.terms.http_body.response_body import encode_named_event
from server.terms.limits import LimitsConfig


class ResponsesServing:
    """Serves the Responses API without its stored responses. Every method runs on the event loop."""

    def __init__(self, inference: Inference, runner: ChatRunner, limits: LimitsConfig) -> None:
        self._inference = inference
        self._runner = runner
        self._limits = limits
        self._run_unless = inference.renderer.pools.run_unless

    async def create(
        self, request: ResponsesRequest, context: RequestContext
    ) -> Response | AsyncGenerator[bytes, None]:
        """Generates the response, or a stream of events. Finds faults of the request before the first event.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed. In a stream, the response becomes `failed`.
        """
        self._inference.models.check_generative("Responses", request.model)
        run = await self._prepare(request, context)
        if request.stream:
            return self._stream(run)
        with own_field_names():
            return await run.complete()

    async def _prepare(self, request: ResponsesRequest, context: RequestContext) -> ResponseRun:
        """Renders the request. The engine receives it when the run is first used.

        Raises:
            RequestError: the request is invalid.
        """
        tools, chat_request = await self._run_unless(context.is_small, self._convert, request)
        context.hold(chat_request)
        with own_field_names():
            chat = await self._runner.start(chat_request, context, id_prefix="resp")
        return ResponseRun(request, chat, tools, self._inference)

    def _convert(self, request: ResponsesRequest) -> tuple[ResponseTools, ChatRequest]:
        tools = ResponseTools(request)
        chat_request = to_chat_request(request, build_conversation(request.instructions, request.items), tools)
        with own_field_names():
            check_limits(chat_request, self._limits)
        return tools, chat_request

    async def _stream(self, run: ResponseRun) -> AsyncGenerator[bytes, None]:
        has_begun = False
        try:
            with own_field_names():
                async with aclosing(run.events()) as events:
                    async for event in events:
                        has_begun = True
                        yield await self._encode(run, event)
        except Exception as err:
            if isinstance(err, RequestError) and not has_begun:
                raise
            run.fail(err)
        yield await self._encode(run, run.last_event())

    async def _encode(self, run: ResponseRun, event: ResponseEvent) -> bytes:
        """Encodes an event. An event with the whole response can be large, so the pool encodes it."""
        is_small = run.is_small or "response" not in event
        return await self._run_unless(is_small, encode_named_event, event)
