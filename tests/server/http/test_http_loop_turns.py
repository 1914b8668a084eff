"""No turn of the event loop runs many lines of Python for any body. Long work runs in the pool.

`test_http_pool.py` tests that libraries decode and encode large bodies in the pool, too.
"""

import asyncio
import gc
import json
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.engine.process_link.client import _OUTPUTS_PER_TURN
from server.terms.config import ModelFiles, RendererConfig
from server.terms.server_config import ServerConfig
from server.terms.types import EngineInfo, EngineOutput, EnginePrompt, EngineStats, TensorData
from server.text.renderers.renderer import Renderer
from tests.server.engine.pooling.tiny_poolers import save_pooler
from tests.server.http.conftest import MODEL, ScriptedEngine, run_app
from tests.server.http.pooled_engine import PooledEngine
from tests.server.server_config import server_config

MOST_LINES = 20_000
"""These take about 2 ms. A loop over the members of any body below executes more."""
MAX_LEN = 131_072
CHAT, COMPLETION, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
PARTS = [{"type": "text", "text": "a"}] * 60_000
HELLO = [{"role": "user", "content": "Hello"}]
IDS = [i % 49_152 for i in range(400_000)]
WORDS = [f"word {i}" for i in range(40_000)]


def _members(count: int) -> dict[str, Any]:
    return {f"k{i}": {"value": i} for i in range(count)}


def _schema(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d"} for i in range(count)}}


def _tools(size: int, **fields: Any) -> list[dict[str, Any]]:
    return [_function(i, parameters=_schema(size), **fields) for i in range(256)]


def _function(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{index}", **fields}}


def _strict(size: int) -> list[dict[str, Any]]:
    closed = _schema(size) | {"additionalProperties": False, "required": [f"p{i}" for i in range(size)]}
    return [_function(i, parameters=closed, strict=True) for i in range(256)]


def _calls(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "1"}, *HELLO]


def _turns(count: int) -> list[dict[str, Any]]:
    return [{"role": role, "content": "a b c"} for _ in range(count // 2) for role in ("user", "assistant")]


def _flat_tools(size: int) -> list[dict[str, Any]]:
    return [{"type": "function", "name": f"f{i}", "parameters": _schema(size)} for i in range(256)]


def _tool_use(given: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "tool_use", "id": "a", "name": "f", "input": given}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
    return [{"role": "assistant", "content": [call]}, *user([result])]


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": HELLO, **fields}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def completion(prompt: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETION, {"prompt": prompt, **fields}


def response(given: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": given, **fields}


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return MESSAGES, {"max_tokens": 2, "messages": HELLO, **fields}


BODIES: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "chat: template variables": lambda: chat(chat_template_kwargs=_members(50_000)),
    "chat: long names": lambda: chat(
        messages=[{"role": "assistant", "content": "", "tool_calls": [], "name": "x " * 100_000}] * 8
    ),
    "chat: tools": lambda: chat(tools=_tools(150), tool_choice="none"),
    "completion: one token over and over": lambda: completion([5] * 130_000),
    "chat: messages": lambda: chat(messages=_turns(2048)),
    "chat: parts": lambda: chat(messages=user(PARTS)),
    "chat: arguments of a call": lambda: chat(messages=_calls(json.dumps(_members(20_000)))),
    "chat: required call": lambda: chat(tools=_tools(20), tool_choice="required"),
    "chat: strict tools": lambda: chat(tools=_strict(20)),
    "chat: biases": lambda: chat(logit_bias={str(i): 1 for i in range(49_152)}),
    "chat: stop tokens": lambda: chat(stop_token_ids=IDS),
    "chat: stop strings": lambda: chat(stop=[f"{'z' * 14}{i:02}" for i in range(64)]),
    "chat: choice": lambda: chat(structured_outputs={"choice": WORDS[:4000]}),
    "chat: choices": lambda: chat(n=1024, logprobs=True, temperature=1),
    "chat: streamed choices": lambda: chat(n=4096, temperature=1, stream=True),
    "completion: streamed prompts": lambda: completion(["a b c"] * 1024, stream=True),
    "completion: prompts of one token": lambda: completion([[5] * 300] * 1024),
    "completion: echoed choices": lambda: completion("hello " * 5000, echo=True, n=256, temperature=1),
    "responses: items": lambda: response(_turns(2048)),
    "responses: streamed tools": lambda: response("a", stream=True, tools=_flat_tools(200), tool_choice="none"),
    "messages: input of a tool": lambda: message(messages=_tool_use(_members(50_000))),
    "messages: system": lambda: message(system=PARTS),
    "count_tokens: parts": lambda: (f"{MESSAGES}/count_tokens", {"messages": user(PARTS)}),
    "detokenize": lambda: ("/detokenize", {"tokens": IDS}),
}

POOLING_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "texts": ("/v1/embeddings", {"input": ["hello world"] * 1024}),
    "score": ("/score", {"text_1": "hello", "text_2": ["hello world"] * 1023}),
}


@pytest.fixture(scope="module")
def send(model_path: Path):
    """A function that sends a body and returns the number of lines in the loop's longest turn."""
    engine = InstantEngine([260, 260])
    engine.info = msgspec.structs.replace(engine.info, max_model_len=MAX_LEN)
    config = server_config(served_model_names=(MODEL,), enable_auto_tool_choice=True, tool_call_parser="hermes")
    with Renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=1)) as renderer:
        yield from _measure(config, renderer, engine)


def _peak_bytes(send, name: str, num_choices: int) -> int:
    path, body = BODIES[name]()
    tracemalloc.start()
    try:
        send(path, body | {"n": num_choices, "temperature": 1, "seed": 1, "max_tokens": 1})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "chat: tools",
        "chat: messages",
        "chat: required call",
        "chat: biases",
        "chat: stop tokens",
        "chat: stop strings",
        "chat: choice",
        "completion: one token over and over",
    ],
)
def test_a_further_choice_keeps_nothing_that_belongs_to_the_request(send, name):
    _peak_bytes(send, name, 1)  # fills caches
    first, further = _peak_bytes(send, name, 1), _peak_bytes(send, name, 17)
    assert further - first < 16 * 40_000, "each of these requests has hundreds of kilobytes"


@pytest.fixture(scope="module")
def send_pooled(tmp_path_factory: pytest.TempPathFactory):
    """Like `send`, for a pooling model."""
    folder = tmp_path_factory.mktemp("bert")
    save_pooler(folder, "bert")
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    with Renderer(ModelFiles(folder, folder), RendererConfig(chat_template=template, num_workers=1)) as renderer:
        yield from _measure(
            ServerConfig(served_model_names=(MODEL,)), renderer, InstantPooling(PooledEngine(folder).info)
        )


class MeasuredLoop(asyncio.SelectorEventLoop):
    """A loop that counts the lines of Python of its longest turn since `forget`, without other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_turn = 0

    def forget(self) -> None:
        """Starts the count again."""
        self.longest_turn = 0

    def _run_once(self) -> None:
        num_lines = 0

        def count(frame: Any, event: str, argument: Any) -> Any:
            nonlocal num_lines
            num_lines += event in ("line", "call")
            return count

        sys.settrace(count)
        try:
            super()._run_once()
        finally:
            sys.settrace(None)
        self.longest_turn = max(self.longest_turn, num_lines)


class InstantEngine(ScriptedEngine):
    """Has computed all outputs before the first one is read. Yields to the loop as the engine client does."""

    async def generate(
        self, request_id: str, prompts: Sequence[EnginePrompt], num_choices: int
    ) -> AsyncGenerator[EngineOutput, None]:
        num_taken = 0
        for index, (prompt, choice) in enumerate(product(prompts, range(num_choices))):
            for output in self._outputs(f"{request_id}-{index}", prompt.token_ids, prompt.params.of_choice(choice)):
                yield output
                num_taken += 1
                if num_taken % _OUTPUTS_PER_TURN == 0:
                    await asyncio.sleep(0)


class InstantPooling:
    """Returns the same vector for every prompt."""

    stats = EngineStats()

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def subscribe_stats(self, callback: Callable[[EngineStats], None]) -> None:
        pass

    async def pool(self, request_id: str, *args: Any, **options: Any) -> EngineOutput:
        vector = TensorData("float32", (32,), memoryview(bytes(128)))
        return EngineOutput(request_id, finish_reason="stop", data=vector)


def _measure(config: ServerConfig, renderer: Renderer, engine: Any):
    renderer.warm_up()
    renderer.pools.text.submit(int).result()  # starts the thread, which stays until the server ends
    renderer.prompts.max_model_len = engine.info.max_model_len
    loop = MeasuredLoop()
    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # as the server does
    gc.freeze()
    with run_app(config, renderer, engine, loop_factory=lambda: loop) as server:

        def send(path: str, body: dict[str, Any], status: int = 200) -> float:
            loop.forget()
            response = server.post(path, {"model": MODEL, "max_tokens": 2, **body})
            assert response.status_code == status, response.text[:300]
            return loop.longest_turn

        yield send
    gc.unfreeze()
    sys.setswitchinterval(switch_interval_s)


@pytest.mark.thorough
@pytest.mark.parametrize("name", BODIES)
def test_no_turn_of_the_loop_is_long(send, name):
    assert 0 < send(*BODIES[name]()) < MOST_LINES


@pytest.mark.thorough
def test_no_turn_of_the_loop_is_long_for_a_long_path(send):
    assert 0 < send("/" + "%41" * 20_000, {}, status=404) < MOST_LINES


@pytest.mark.thorough
@pytest.mark.parametrize("name", POOLING_BODIES)
def test_no_turn_of_the_loop_is_long_for_pooled_prompts(send_pooled, name):
    assert 0 < send_pooled(*POOLING_BODIES[name]) < MOST_LINES
