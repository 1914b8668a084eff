"""Answers /v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET

from server import sse
from server.protocol.chat import ChatRequest
from server.protocol.chat_response import ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatMessage, ChatResponse
from server.protocol.logprobs import ChatLogprobs
from server.serving.chat_options import adds_generation_prompt, chat_options
from server.serving.failures import end_with_done
from server.serving.generation import Generation, SequenceDelta
from server.serving.inference import Inference
from server.serving.logprobs import LogprobFormatter
from server.serving.models import unix_time
from server.serving.preparation import GenerationBuilder
from server.serving.request_context import RequestContext
from server.serving.streams import collect, generate
from server.serving.tools import collect_tool_calls, create_tool_reader
from server.serving.usage import UsageMeter, UsageReporting


class ChatServing:
    """One per server; every method runs on the event loop."""

    def __init__(self, inference: Inference, builder: GenerationBuilder) -> None:
        self._inference = inference
        self._builder = builder

    async def create(self, request: ChatRequest, context: RequestContext) -> ChatResponse | AsyncGenerator[bytes, None]:
        """The response, or its events. Every fault of the request is found before the first event.

        Raises:
            RequestError: the request is invalid, or the model does not generate.
            EngineError: the engine failed; in streams this is an event.
        """
        self._inference.models.check_generative("Chat Completions")
        self._inference.models.check(request.model)
        with context.times.rendering():
            prompt = await self._inference.renderer.render_chat_async(request.messages, chat_options(request))
        generation = await self._builder.build(request, [prompt], context)
        response = _ChatResponse(self._inference, generation)
        return end_with_done(response.stream()) if request.stream else await response.complete()


class _ChatResponse:
    """The bodies of one request's response."""

    def __init__(self, inference: Inference, generation: Generation) -> None:
        request = generation.request
        assert isinstance(request, ChatRequest)
        self._inference = inference
        self._model = inference.models.default_name
        self._request = request
        self._generation = generation
        self._created = unix_time()
        self._role = inference.config.response_role if adds_generation_prompt(request) else request.messages[-1]["role"]
        self._readers = [create_tool_reader(request) for _ in range(generation.num_choices)]
        self._logprobs = LogprobFormatter.from_request(inference, request)
        self._meter = UsageMeter(generation, has_prompt_details=inference.config.enable_prompt_tokens_details)

    async def complete(self) -> ChatResponse:
        """The whole response."""
        deltas = await collect(self._inference, self._generation)
        for delta in deltas:
            self._meter.add(delta)
        prompt = self._generation.prompts[0]
        prompt_logprobs = deltas[0].prompt_logprobs
        return ChatResponse(
            id=self._generation.request_id,
            created=self._created,
            model=self._model,
            choices=[await self._choice(delta) for delta in deltas],
            usage=self._meter.total(),
            prompt_logprobs=None if prompt_logprobs is None else await self._logprobs.prompt(prompt_logprobs),
            prompt_token_ids=prompt.token_ids if self._request.return_token_ids else None,
            prompt_text=prompt.text if self._request.return_prompt_text else None,
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as events. The opening chunks are sent with the first token, in one write."""
        reporting = UsageReporting(self._request.stream_options, self._inference.config)
        opening: bytes | None = self._opening(in_chunks=reporting.in_chunks)
        async with aclosing(generate(self._inference, self._generation)) as deltas:
            async for delta in deltas:
                self._meter.add(delta)
                event = await self._event(delta, in_chunks=reporting.in_chunks)
                if opening is not None:
                    event, opening = opening + event, None
                if event:
                    yield event
        if reporting.at_end:
            chunk = self._chunk([])
            chunk.usage = self._meter.total()
            yield sse.encode_event(chunk)

    def _opening(self, *, in_chunks: bool) -> bytes:
        """The opening chunks: for each choice its role, then the echoed message."""
        events = []
        for content in filter(None, ("role", self._echo())):
            for index in range(self._generation.num_choices):
                is_role = content == "role"
                delta = ChatDelta(role=self._role, content="") if is_role else ChatDelta(content=content)
                chunk = self._chunk([ChatChunkChoice(index=index, delta=delta)])
                if is_role:
                    self._add_prompt(chunk)
                if in_chunks:
                    chunk.usage = self._meter.of_choice(index)
                events.append(sse.encode_event(chunk))
        return b"".join(events)

    def _add_prompt(self, chunk: ChatChunk) -> None:
        prompt = self._generation.prompts[0]
        if self._request.return_token_ids:
            chunk.prompt_token_ids = prompt.token_ids
        if self._request.return_prompt_text and prompt.text is not None:
            chunk.prompt_text = prompt.text

    async def _event(self, delta: SequenceDelta, *, in_chunks: bool) -> bytes:
        """One chunk; empty when the tokens are only punctuation around tool calls."""
        content = self._delta(delta)
        is_silent = content is None and delta.finish_reason is None
        if is_silent and not self._request.logprobs and not self._request.return_token_ids:
            return b""
        choice = ChatChunkChoice(
            index=delta.choice,
            delta=ChatDelta() if content is None else content,
            logprobs=await self._show_logprobs(delta),
            finish_reason=self._finish_reason(delta),
        )
        if delta.finish_reason is not None:
            choice.stop_reason = delta.stop_reason
        if self._request.return_token_ids:
            choice.token_ids = delta.token_ids
        chunk = self._chunk([choice])
        if in_chunks:
            chunk.usage = self._meter.of_choice(delta.choice)
        return sse.encode_event(chunk)

    def _delta(self, delta: SequenceDelta) -> ChatDelta | None:
        reader = self._readers[delta.choice]
        if reader is None:
            return ChatDelta(content=delta.text)
        calls = reader.read(delta.text)
        return ChatDelta(tool_calls=calls) if calls else None

    async def _choice(self, delta: SequenceDelta) -> ChatChoice:
        return ChatChoice(
            index=delta.choice,
            message=self._message(delta),
            logprobs=await self._show_logprobs(delta),
            finish_reason=self._finish_reason(delta),
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if self._request.return_token_ids else None,
        )

    def _message(self, delta: SequenceDelta) -> ChatMessage:
        reader = self._readers[delta.choice]
        if reader is None:
            return ChatMessage(role=self._role, content=self._echo() + delta.text)
        calls = collect_tool_calls(reader.read(delta.text))
        return ChatMessage(role=self._role, content="", tool_calls=calls or UNSET)

    def _finish_reason(self, delta: SequenceDelta) -> str | None:
        """As OpenAI: `tool_calls` if the model chose the tool, `stop` if the request named it."""
        if delta.finish_reason == "stop" and self._request.tool_choice == "required":
            return "tool_calls"
        return delta.finish_reason

    async def _show_logprobs(self, delta: SequenceDelta) -> ChatLogprobs | None:
        return await self._logprobs.chat(delta.logprobs or ()) if self._request.logprobs else None

    def _echo(self) -> str:
        """The text of the last message if `echo` repeats it before its continuation."""
        last = self._request.messages[-1]
        if not self._request.echo or last.get("role") != self._role:
            return ""
        content = last.get("content") or ""
        if isinstance(content, str):
            return content
        return "\n".join(part if isinstance(part, str) else part.get("text") or "" for part in content)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(id=self._generation.request_id, created=self._created, model=self._model, choices=choices)
