"""Answers /v1/chat/completions: the bodies of a `ChatRun`."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET

from server.apis.openai.bodies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    ChatResponse,
    DeltaFunctionCall,
    DeltaToolCall,
    FunctionCall,
    ToolCall,
)
from server.generation.chat_request import ChatRequest
from server.generation.chat_run import ChatRun, ChatRunner
from server.generation.logprobs import ChatLogprobs, LogprobFormatter
from server.generation.output_parsing import ChoiceDelta, ToolCallPart
from server.generation.usage import UsageReporting
from server.http_body.errors import end_stream
from server.http_body.response_parts import encode_event
from server.operation.concurrently import take_turns
from server.operation.inference import Inference
from server.operation.models import unix_time
from server.operation.request_context import RequestContext
from server.parsers.events import Reasoning


class ChatServing:
    """One per server; every method runs on the event loop."""

    def __init__(self, inference: Inference, runner: ChatRunner) -> None:
        self._inference = inference
        self._runner = runner

    async def create(self, request: ChatRequest, context: RequestContext) -> ChatResponse | AsyncGenerator[bytes, None]:
        """The response, or its events. Every fault of the request is found before the first event.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed; in streams this is an event.
        """
        self._inference.models.check_generative("Chat Completions", request.model)
        run = await self._runner.start(request, context)
        bodies = ChatBodies(self._inference, run)
        return end_stream(bodies.stream()) if request.stream else await bodies.complete(await run.collect())


class ChatBodies:
    """The bodies of one request's response."""

    def __init__(self, inference: Inference, run: ChatRun) -> None:
        request = run.request
        self._inference = inference
        self._model = inference.models.response_name(request.model)
        self._request = request
        self._run = run
        self._created = unix_time()
        self._shows_logprobs = bool(request.logprobs) and not run.hides_tokens
        self._shows_token_ids = bool(request.return_token_ids) and not run.hides_tokens
        self._role = self._find_role()
        self._echo = self._find_echo()
        self._logprobs = LogprobFormatter(inference, request)

    async def complete(self, choices: Sequence[ChoiceDelta]) -> ChatResponse:
        """The whole response, of one delta per choice."""
        prompt = self._run.prompt
        prompt_logprobs = choices[0].sequence.prompt_logprobs
        return ChatResponse(
            id=self._run.id,
            created=self._created,
            model=self._model,
            choices=[await self._choice(choice) async for choice in take_turns(choices)],
            usage=self._run.meter.total(),
            prompt_logprobs=None if prompt_logprobs is None else await self._logprobs.prompt(prompt_logprobs),
            prompt_token_ids=prompt.token_ids if self._request.return_token_ids else None,
            prompt_text=prompt.text if self._request.return_prompt_text else None,
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as events. The opening chunks are sent with the first token, in one write."""
        reporting = UsageReporting(self._request.stream_options, self._inference.config.generation)
        opening: bytes | None = await self._opening(in_chunks=reporting.in_chunks)
        async with aclosing(self._run.stream()) as deltas:
            async for delta in deltas:
                event = await self._event(delta, in_chunks=reporting.in_chunks)
                if opening is not None:
                    event, opening = opening + event, None
                if event:
                    yield event
        if reporting.at_end:
            chunk = self._chunk([])
            chunk.usage = self._run.meter.total()
            yield encode_event(chunk)

    async def _opening(self, *, in_chunks: bool) -> bytes:
        """The opening chunks: for each choice its role, then the echoed message."""
        events = []
        for content in filter(None, ("role", self._echo)):
            async for index in take_turns(range(self._run.num_choices)):
                is_role = content == "role"
                delta = ChatDelta(role=self._role, content="") if is_role else ChatDelta(content=content)
                chunk = self._chunk([ChatChunkChoice(index=index, delta=delta)])
                if is_role:
                    self._add_prompt(chunk)
                if in_chunks:
                    chunk.usage = self._run.meter.of_choice(index)
                events.append(encode_event(chunk))
        return b"".join(events)

    def _add_prompt(self, chunk: ChatChunk) -> None:
        prompt = self._run.prompt
        if self._request.return_token_ids:
            chunk.prompt_token_ids = prompt.token_ids
        if self._request.return_prompt_text and prompt.text is not None:
            chunk.prompt_text = prompt.text

    async def _event(self, delta: ChoiceDelta, *, in_chunks: bool) -> bytes:
        """One chunk; empty when the tokens are only markers, or held back."""
        is_silent = not delta.parts and delta.finish_reason is None
        if is_silent and not self._shows_logprobs and not self._shows_token_ids:
            return b""
        choice = ChatChunkChoice(
            index=delta.choice,
            delta=_delta(delta),
            logprobs=await self._show_logprobs(delta),
            finish_reason=delta.finish_reason,
        )
        if delta.finish_reason is not None:
            choice.stop_reason = delta.sequence.stop_reason
        if self._shows_token_ids:
            choice.token_ids = delta.sequence.token_ids
        chunk = self._chunk([choice])
        if in_chunks:
            chunk.usage = self._run.meter.of_choice(delta.choice)
        return encode_event(chunk)

    async def _choice(self, choice: ChoiceDelta) -> ChatChoice:
        return ChatChoice(
            index=choice.choice,
            message=self._message(choice),
            logprobs=await self._show_logprobs(choice),
            finish_reason=choice.finish_reason,
            stop_reason=choice.sequence.stop_reason,
            token_ids=choice.sequence.token_ids if self._shows_token_ids else None,
        )

    def _message(self, choice: ChoiceDelta) -> ChatMessage:
        content: str | None = self._echo + choice.content
        calls = [
            ToolCall(id=str(call.id), function=FunctionCall(str(call.name), call.arguments))
            for call in choice.tool_calls
        ]
        has_reasoning = self._run.generation.reasoning_of(choice.choice) is not None
        is_empty = not str(content).strip() if calls else has_reasoning and not content
        if is_empty and not self._request.forces_call:
            content = None
        return ChatMessage(
            role=self._role,
            content=content,
            tool_calls=calls or UNSET,
            reasoning=choice.reasoning or None,
        )

    async def _show_logprobs(self, delta: ChoiceDelta) -> ChatLogprobs | None:
        return await self._logprobs.chat(delta.sequence.logprobs or ()) if self._shows_logprobs else None

    def _find_role(self) -> str:
        if self._request.opens_message:
            return self._inference.config.generation.response_role
        return str(self._request.messages[-1]["role"])

    def _find_echo(self) -> str:
        """The text of the last message if `echo` repeats it before its continuation."""
        last = self._request.messages[-1]
        if not self._request.echo or last.get("role") != self._role:
            return ""
        content = last.get("content") or ""
        if isinstance(content, str):
            return content
        return "\n".join(part if isinstance(part, str) else part.get("text") or "" for part in content)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(id=self._run.id, created=self._created, model=self._model, choices=choices)


def _delta(delta: ChoiceDelta) -> ChatDelta:
    result = ChatDelta()
    for part in delta.parts:
        if isinstance(part, ToolCallPart):
            result.tool_calls = [] if result.tool_calls is UNSET else result.tool_calls
            result.tool_calls.append(_delta_call(part))
        elif isinstance(part, Reasoning):
            result.reasoning = part.text if result.reasoning is UNSET else result.reasoning + part.text
        else:
            result.content = part.text if result.content is UNSET else result.content + part.text
    return result


def _delta_call(part: ToolCallPart) -> DeltaToolCall:
    if part.name is None:
        return DeltaToolCall(index=part.position, function=DeltaFunctionCall(arguments=part.arguments))
    return DeltaToolCall(
        index=part.position,
        id=str(part.id),
        type="function",
        function=DeltaFunctionCall(name=part.name, arguments=part.arguments),
    )
