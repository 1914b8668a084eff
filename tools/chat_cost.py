"""Measures a streamed chat's cost per token in the API process: `python -m tools.chat_cost [PARSER …]`.

The tokens arrive one by one without delay: half of them are text, half are the arguments of a tool call. The
cost is that of detokenizer, parser and events, without HTTP. The smallest of seven rounds counts.
"""

import asyncio
import json
import sys
from time import perf_counter
from typing import Any

import msgspec

from server.config import ModelFiles, RendererConfig
from server.generation.chat_request import ChatRequest
from server.operation.request_context import RequestContext
from server.renderers.hf import HfRenderer
from server.routes.table import build_routes
from server.server_config import GenerationConfig, ServerConfig
from server.types import EngineOutput
from startup.download.obtain import resolve_model
from startup.model.request import ModelRequest
from tests.server.http.conftest import EOS, MODEL, ScriptedEngine, run_app

ROUNDS = 7
WORDS = 700
CALL = '<tool_call>\n{"name": "f", "arguments": {"text": "%s"}}\n</tool_call>'


class QuickEngine(ScriptedEngine):
    """Sends the reply without giving the loop to others."""

    async def generate(self, request_id: str, *_: Any, **__: Any) -> Any:
        for token_id in self.reply:
            yield EngineOutput(request_id=f"{request_id}-0", token_ids=[token_id])
        yield EngineOutput(request_id=f"{request_id}-0", token_ids=[EOS], finish_reason="stop", stop_token_id=EOS)


def main(names: list[str]) -> None:
    folder = resolve_model(ModelRequest()).path
    with HfRenderer(ModelFiles(folder, folder), RendererConfig()) as renderer:
        renderer.max_model_len = 16_384
        text = "a small wörld, " * WORDS + CALL % ("a small wörld, " * WORDS)
        engine = QuickEngine(renderer.tokenizer.encode(text, add_special_tokens=False))
        engine.info = msgspec.structs.replace(engine.info, max_model_len=16_384)
        for name in (None, *(names or ["hermes", "mistral", "llama3_json"])):
            print(f"{name or 'no parser':<14}{cost_us(name, renderer, engine):6.1f} µs per token", flush=True)


def cost_us(name: str | None, renderer: HfRenderer, engine: QuickEngine) -> float:
    """The cost of one of the engine's tokens with a parser."""
    config = ServerConfig(
        served_model_names=(MODEL,),
        generation=GenerationConfig(enable_auto_tool_choice=bool(name), tool_call_parser=name),
    )
    with run_app(config, renderer, engine) as server:
        routes = {route.path: route.app for route in build_routes(server.parts)}
        create = routes["/v1/chat/completions"]._handle  # type: ignore[attr-defined]
        rounds = [asyncio.run(_stream(create, has_tools=name is not None)) for _ in range(ROUNDS)]
    return min(rounds) / len(engine.reply) * 1e6


async def _stream(create: Any, *, has_tools: bool) -> float:
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]} if has_tools else {}
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True} | tools
    events = await create(msgspec.json.decode(json.dumps(body), type=ChatRequest), RequestContext())
    start = perf_counter()
    async for _ in events:
        pass
    return perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
