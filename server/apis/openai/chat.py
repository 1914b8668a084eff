"""Answers /v1/chat/completions with the output of a `ChatRun`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from server.generation.chat import ChatRun, ChatRunner, ChoiceDelta, ToolCallPart
from server.generation.generation_request import ChatRequest
from server.generation.logprobs import LogprobFormatter
from server.generation.sequences import Usage
from server.operation.admission import RequestContext
from server.operation.models import Inference, unix_time
from server.terms.concurrency import take_turns
from server.terms.http_body.response_body import encode_event, end_stream
from server.text.parsers.output_parser import Content, Reasoning


async def create_chat_completion(
    inference: Inference, runner: ChatRunner, request: ChatRequest, context: RequestContext
) -> dict[str, Any] | AsyncGenerator[bytes, None]:
    """Generates the response, or a stream of events."""
    inference.models.check_generative("Chat Completions", request.model)
    bodies = ChatBodies(inference, await runner.start(request, context))
    return end_stream(bodies.stream()) if request.stream else await bodies.complete()


class ChatBodies:
    """Writes the response of one request."""

    def __init__(self, inference: Inference, run: ChatRun) -> None:
        request = run.request
        self._model = inference.models.default_name
        self._request = request
        self._run = run
        self._generation = run.generation
        self._created = unix_time()
        self._shows_logprobs = bool(request.logprobs) and not run.hides_tokens
        self._shows_token_ids = bool(request.return_token_ids) and not run.hides_tokens
        self._role = "assistant" if request.opens_message else str(request.messages[-1]["role"])
        self._logprobs = LogprobFormatter(inference, request)

    async def complete(self) -> dict[str, Any]:
        choices = await self._run.collect()
        prompt_logprobs = choices[0].sequence.prompt_logprobs
        return {
            "id": self._generation.request_id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [await self._choice(choice) async for choice in take_turns(choices)],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self._run.meter.total(),
            "kv_transfer_params": None,
            "prompt_logprobs": None if prompt_logprobs is None else await self._logprobs.prompt(prompt_logprobs),
            "prompt_token_ids": self._generation.prompts[0].token_ids if self._request.return_token_ids else None,
            "prompt_text": None,
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yields the response as events. The opening chunks are sent together with the first token."""
        opening: bytes | None = await self._opening()
        async with aclosing(self._run.stream()) as deltas:
            async for delta in deltas:
                event = await self._event(delta)
                if opening is not None:
                    event, opening = opening + event, None
                if event:
                    yield event
        if self._run.meter.is_sent_at_end:
            yield encode_event(self._chunk([], self._run.meter.total()))

    async def _opening(self) -> bytes:
        """Returns the opening chunks. Each chunk has the role of one choice."""
        shown = {"prompt_token_ids": self._generation.prompts[0].token_ids} if self._request.return_token_ids else {}
        events = []
        async for index in take_turns(range(self._generation.num_choices)):
            delta = {"role": self._role, "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            chunk = self._chunk([choice], self._run.meter.of_chunk(index))
            events.append(encode_event(chunk | shown))
        return b"".join(events)

    async def _event(self, delta: ChoiceDelta) -> bytes:
        """Returns the chunk for a delta. Empty if the delta's tokens are only markers, or are held back."""
        is_silent = not delta.parts and delta.finish_reason is None
        if is_silent and not self._shows_logprobs and not self._shows_token_ids:
            return b""
        choice = {
            "index": delta.choice,
            "delta": _delta(delta),
            "logprobs": await self._show_logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.sequence.stop_reason
        if self._shows_token_ids:
            choice["token_ids"] = delta.sequence.token_ids
        return encode_event(self._chunk([choice], self._run.meter.of_chunk(delta.choice)))

    async def _choice(self, choice: ChoiceDelta) -> dict[str, Any]:
        return {
            "index": choice.choice,
            "message": self._message(choice),
            "logprobs": await self._show_logprobs(choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.sequence.stop_reason,
            "token_ids": choice.sequence.token_ids if self._shows_token_ids else None,
        }

    def _message(self, choice: ChoiceDelta) -> dict[str, Any]:
        content: str | None = choice.content
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
        has_reasoning = self._generation.reasoning_of(choice.choice) is not None
        is_empty = not str(content).strip() if calls else has_reasoning and not content
        if is_empty and not self._request.forces_call:
            content = None
        return {
            "role": self._role,
            "content": content,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            **({"tool_calls": calls} if calls else {}),
            "reasoning": choice.reasoning or None,
        }

    async def _show_logprobs(self, delta: ChoiceDelta) -> dict[str, Any] | None:
        if not self._shows_logprobs:
            return None
        return {"content": await self._logprobs.chat(delta.choice, delta.sequence.logprobs or ())}

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        chunk = {
            "id": self._generation.request_id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return chunk if usage is None else chunk | {"usage": usage}


def _delta(delta: ChoiceDelta) -> dict[str, Any]:
    kinds = {type(part) for part in delta.parts}
    shown: dict[str, Any] = {}
    if Reasoning in kinds:
        shown["reasoning"] = delta.reasoning
    if Content in kinds:
        shown["content"] = delta.content
    if ToolCallPart in kinds:
        shown["tool_calls"] = [_delta_call(part) for part in delta.tool_calls]
    return shown


def _delta_call(part: ToolCallPart) -> dict[str, Any]:
    """Returns a part of a call. Only the first part of a call has id, type and name."""
    if part.name is None:
        return {"index": part.position, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.position, "id": part.id, "type": "function", "function": function}
