"""Answers /v1/responses. Turns deltas of the chat into output items, events and the final body."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from base.errors import RequestError
from base.json_depth import read_json
from server.apis.responses.conversion import FIELDS, build_conversation, to_chat_request
from server.apis.responses.output import OutputItem, OutputWriter, ResponseEvent, create_event
from server.apis.responses.responses_request import ResponsesRequest
from server.apis.responses.tools import ResponseTools
from server.generation.chat import ChatRun, ChatRunner, ChoiceDelta
from server.generation.generation_request import ChatRequest
from server.generation.logprobs import ChatLogprob, LogprobFormatter
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.terms.http_body.request_body import check_limits, field_names
from server.terms.http_body.response_body import describe_failure, encode_named_event
from server.terms.limits import LimitsConfig
from server.terms.types import SamplingParams

Response = dict[str, Any]
"""The body of a response, complete or not."""


class ResponseRun:
    """One response. Call either `events` or `complete`, and only once. Both run on the event loop."""

    def __init__(self, request: ResponsesRequest, chat: ChatRun, tools: ResponseTools, inference: Inference) -> None:
        self.request = request
        (params,) = chat.generation.params
        self.response = empty_response(request, params, inference.models.default_name)
        """The response so far."""
        self.chat = chat
        self._writer = OutputWriter(tools)
        self._logprobs = LogprobFormatter(inference, chat.request)
        self._num_events = 0

    async def complete(self) -> Response:
        """Generates and returns the complete response. Raises EngineError if the engine fails."""
        async with aclosing(self._output()) as events:
            async for _ in events:
                pass
        return self.response

    async def events(self) -> AsyncGenerator[ResponseEvent, None]:
        """Generates the response. Yields all events except the last. Raises EngineError if the engine fails.

        The opening events are yielded with the first token, because until then the engine may reject the
        request.
        """
        opening = [create_event(kind, response=self.response) for kind in ("response.created", "response.in_progress")]
        async with aclosing(self._output(opening)) as events:
            async for event in events:
                yield self._numbered(event)

    def last_event(self) -> ResponseEvent:
        """Returns the event with the final response.

        As in vLLM, `response.completed` also ends an incomplete response.
        """
        kind = "response.failed" if self.response["status"] == "failed" else "response.completed"
        return self._numbered(create_event(kind, response=self.response))

    def fail(self, error: Exception) -> None:
        details = {"code": "server_error", "message": describe_failure(error).error.message}
        head = {name: self.response[name] for name in ("id", "created_at")} | {"error": details}
        self.response = head | self.response | {"status": "failed", "output": list(self._writer.items)}

    async def _output(self, opening: Sequence[ResponseEvent] = ()) -> AsyncGenerator[ResponseEvent, None]:
        finish_reason = None
        async with aclosing(self.chat.stream()) as deltas:
            async for delta in deltas:
                finish_reason = delta.finish_reason
                for event in opening:
                    yield event
                opening = ()
                for event in self._writer.add(delta.parts, await self._show_logprobs(delta)):
                    yield event
        for event in self._writer.finish():
            yield event
        self._finish(is_incomplete=finish_reason == "length")

    async def _show_logprobs(self, delta: ChoiceDelta) -> list[ChatLogprob]:
        if self.request.num_logprobs is None or self.chat.hides_tokens:
            return []
        return await self._logprobs.chat(delta.choice, delta.sequence.logprobs or ())

    def _finish(self, *, is_incomplete: bool) -> None:
        output = self._writer.items
        if is_incomplete and not self.request.stream and output and _is_cut_off(output[-1]):
            output = output[:-1]
        self.response = self.response | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
            "output": output,
            "status": "incomplete" if is_incomplete else "completed",
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        """Leaves out vLLM's lists per turn, because OpenAI's agents for JavaScript fail on empty lists."""
        total = self.chat.meter.total()
        details, prompt_details = total.completion_tokens_details or {}, total.prompt_tokens_details or {}
        return {
            "input_tokens": total.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0} | prompt_details,
            "output_tokens": total.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0} | details,
            "total_tokens": total.total_tokens,
        }

    def _numbered(self, event: ResponseEvent) -> ResponseEvent:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event


def empty_response(request: ResponsesRequest, params: SamplingParams, model: str) -> Response:
    """Returns the response before the first token, with the sampling parameters that apply."""
    return {
        "id": f"resp_{uuid4().hex}",
        "created_at": unix_time(),
        "incomplete_details": None,
        "instructions": request.instructions,
        "metadata": request.metadata,
        "model": model,
        "object": "response",
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "temperature": params.temperature,
        "tool_choice": request.tool_choice if request.tools else "none",
        "tools": request.tools or [],
        "top_p": params.top_p,
        "background": False,
        "max_output_tokens": params.max_tokens,
        "max_tool_calls": request.max_tool_calls,
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_options": request.prompt_cache_options,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": request.reasoning,
        "safety_identifier": request.safety_identifier,
        "service_tier": request.service_tier,
        "status": "in_progress",
        "text": request.text,
        "top_logprobs": request.num_logprobs,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _is_cut_off(item: OutputItem) -> bool:
    """Whether an item is a call with incomplete arguments."""
    if item["type"] != "function_call":
        return False
    try:
        read_json(item["arguments"])
    except ValueError:
        return True
    return False


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
        """Generates the response, or a stream of events."""
        self._inference.models.check_generative("Responses", request.model)
        tools, chat_request = await self._run_unless(context.is_small, self._convert, request)
        context.hold(chat_request)
        with field_names(FIELDS):
            chat = await self._runner.start(chat_request, context, id_prefix="resp")
        run = ResponseRun(request, chat, tools, self._inference)
        if request.stream:
            return self._stream(run)
        with field_names(FIELDS):
            return await run.complete()

    def _convert(self, request: ResponsesRequest) -> tuple[ResponseTools, ChatRequest]:
        tools = ResponseTools(request)
        chat_request = to_chat_request(request, build_conversation(request.instructions, request.items), tools)
        with field_names(FIELDS):
            check_limits(chat_request, self._limits)
        return tools, chat_request

    async def _stream(self, run: ResponseRun) -> AsyncGenerator[bytes, None]:
        has_begun = False
        try:
            with field_names(FIELDS):
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
        is_small = run.chat.generation.context.is_small or "response" not in event
        return await self._run_unless(is_small, encode_named_event, event)
