"""A live HTTP server with the real renderer and an engine with scripted replies."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import openai
import pytest

from base.errors import EngineDeadError
from base.lifecycle import Lifecycle, StartInfo
from base.security.api_keys import ApiKeys
from server.engine.sampling.grammar import GrammarError
from server.http.app import ServerApp
from server.http.routes.endpoint import AppParts
from server.http.transport.connection import Serving
from server.http.transport.server import HttpServer
from server.operation.admission import Admission
from server.operation.metrics.server_metrics import ServerMetrics
from server.operation.models import ServedModels
from server.terms.config import ModelFiles, RendererConfig
from server.terms.limits import LimitsConfig
from server.terms.server_config import ServerConfig
from server.terms.types import (
    EngineInfo,
    EngineOutput,
    EnginePrompt,
    EngineStats,
    PromptInputs,
    SamplingParams,
    TokenLogprob,
)
from server.text.renderers.renderer import Renderer
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.server_config import INFO, server_config
from tests.support.http_client import RawClient
from tests.support.waiting import wait_until as poll

MODEL = "smol"
EOS = 2
MAX_MODEL_LEN = INFO.max_model_len
PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Hello"}]
TEXT = " Paris, the city of light."
"""The engine's reply unless a test sets another one."""
PATIENT_S = 120.0
_POLL_S = 0.005
_CLIENT: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": PATIENT_S}
_HTTP: dict[str, Any] = {"trust_env": False, "verify": False, "timeout": PATIENT_S}
"""Without `verify=False`, every client would first load the CA certificates, which takes 17 ms."""


@dataclass
class ScriptedEngine:
    """Replies to each prompt with the same tokens, then the end of sequence. Applies limits on tokens."""

    reply: list[int]
    step_s: float = 0.0
    holds_after: int | None = None
    """After this number of tokens, a sequence waits until this attribute is None."""
    fails_after: int | None = None
    """After this number of tokens, a sequence ends with an engine error."""
    dies_after: int | None = None
    """After this number of tokens, the engine dies."""
    tokens_per_step: int = 1
    num_cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    requests: dict[str, tuple[list[int], SamplingParams]] = field(default_factory=dict)
    inputs: dict[str, PromptInputs | None] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    _num_sent: dict[str, int] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    stats: EngineStats = EngineStats()
    subscribers: list[Callable[[EngineStats], None]] = field(default_factory=list)
    info: EngineInfo = INFO

    def reset(self, reply: list[int]) -> None:
        """Resets everything except the subscribers."""
        vars(self).update(vars(ScriptedEngine(reply, subscribers=self.subscribers)))

    def subscribe_stats(self, callback: Callable[[EngineStats], None]) -> None:
        self.subscribers.append(callback)

    async def generate(
        self, request_id: str, prompts: Sequence[EnginePrompt], num_choices: int = 1
    ) -> AsyncGenerator[EngineOutput, None]:
        """Runs the sequences concurrently. The first failure ends all sequences."""
        queue: asyncio.Queue[EngineOutput | Exception | None] = asyncio.Queue()

        async def pump(index: int) -> None:
            prompt = prompts[index // num_choices]
            params = prompt.params.of_choice(index % num_choices)
            try:
                async with aclosing(self.run_sequence(f"{request_id}-{index}", prompt, params)) as outputs:
                    async for output in outputs:
                        queue.put_nowait(output)
            except Exception as err:  # noqa: BLE001
                queue.put_nowait(err)
            finally:
                queue.put_nowait(None)

        count = len(prompts) * num_choices
        self._tasks |= {f"{request_id}-{index}": asyncio.create_task(pump(index)) for index in range(count)}
        tasks = [self._tasks[f"{request_id}-{index}"] for index in range(count)]
        try:
            while count:
                output = await queue.get()
                if isinstance(output, Exception):
                    raise output
                if output is None:
                    count -= 1
                else:
                    yield output
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._tasks[request_id].cancel()

    async def run_sequence(
        self, request_id: str, prompt: EnginePrompt, params: SamplingParams
    ) -> AsyncGenerator[EngineOutput, None]:
        assert request_id not in self.requests, "engine ids must be unique"
        self.requests[request_id] = (prompt.token_ids, params)
        self.inputs[request_id] = prompt.inputs
        finished = False
        try:
            for output in _refusal(request_id, params) or self._outputs(request_id, prompt.token_ids, params):
                await asyncio.sleep(self.step_s)
                while (limit := self.holds_after) is not None and self._sent(request_id) >= limit:
                    await asyncio.sleep(_POLL_S)
                if self.dies_after is not None and self._sent(request_id) >= self.dies_after:
                    raise EngineDeadError("the engine process ended unexpectedly")
                finished = output.finish_reason is not None
                self._count(request_id, len(output.token_ids))
                yield output
        finally:
            if not finished:
                self.aborted.append(request_id)

    def _sent(self, request_id: str) -> int:
        return self._num_sent.get(request_id, 0)

    def _count(self, request_id: str, num_tokens: int) -> None:
        self._num_sent[request_id] = self._sent(request_id) + num_tokens
        for callback in self.subscribers:
            callback(EngineStats(num_running=1, num_iteration_tokens=num_tokens))

    def _outputs(self, request_id: str, prompt: list[int], params: SamplingParams) -> Iterator[EngineOutput]:
        sent = 0
        for start in range(0, len(self.reply) + 1, self.tokens_per_step):
            token_ids = [*self.reply, EOS][start : start + self.tokens_per_step][: params.max_tokens - sent]
            stops = [token_id for token_id in token_ids if token_id in (*params.stop_token_ids, EOS)]
            if stops:
                token_ids = token_ids[: token_ids.index(stops[0]) + 1]
            sent += len(token_ids)
            if self.fails_after is not None and sent > self.fails_after:
                yield EngineOutput(request_id=request_id, finish_reason="error", error="the grammar became too large")
                return
            is_full = sent >= params.max_tokens
            yield EngineOutput(
                request_id=request_id,
                token_ids=token_ids,
                finish_reason="stop" if stops else "length" if is_full else None,
                stop_token_id=stops[0] if stops else None,
                logprobs=[_logprob(token_id, params.logprobs) for token_id in token_ids]
                if params.logprobs is not None
                else None,
                prompt_logprobs=[None, *(_logprob(token_id, params.prompt_logprobs) for token_id in prompt[1:])]
                if params.prompt_logprobs is not None and start == 0
                else None,
                num_cached_tokens=self.num_cached_tokens if start == 0 else 0,
                queue_s=self.queue_s if start == 0 else 0.0,
                prefill_s=self.prefill_s if start == 0 else 0.0,
            )
            if stops or is_full:
                return


def _refusal(request_id: str, params: SamplingParams) -> list[EngineOutput]:
    try:
        if params.guided is not None:
            build_grammar(params.guided)
    except GrammarError as err:
        return [EngineOutput(request_id=request_id, finish_reason="error", error=str(err), fault="constraint")]
    return []


def _logprob(token_id: int, num_top: int | None) -> TokenLogprob:
    """Log-probabilities in which the token is the second most likely, after the token with the next id."""
    top = [(token_id + 1, -0.25), (token_id, -1.5), (token_id + 2, -9999.0)]
    return TokenLogprob(token_id, -1.5, 2, top[: num_top or 0])


@dataclass(frozen=True)
class LiveServer:
    """A running server, its parts and its engine."""

    url: str
    parts: AppParts
    engine: ScriptedEngine
    http: httpx.Client

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **(_CLIENT | options))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, self.url + path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **options)

    def complete(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": PROMPT} | fields)

    def chat(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": MESSAGES} | fields)

    def post_bytes(self, path: str, content: Any, content_type: str = "application/json") -> httpx.Response:
        return self.ask("POST", path, content=content, headers={"content-type": content_type})

    def send(self, path: str, body: dict[str, Any]) -> RawClient:
        """Sends a request and returns its connection, which the test may close at any time."""
        return RawClient(int(self.url.rpartition(":")[2])).post(path, body)

    def stream_lines(self, path: str, body: dict[str, Any]) -> list[str]:
        """The data of a stream's events."""
        text = self.post(path, body | {"stream": True}).text
        return [event.removeprefix("data: ") for event in text.split("\n\n") if event]

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream, which ends with [DONE]."""
        *lines, last = self.stream_lines(path, body)
        assert last == "[DONE]"
        return [json.loads(line) for line in lines]


def assert_rejected(response: httpx.Response, param: str | None, words: str = "") -> None:
    """Checks that the response is a 400 that names the parameter and has the words in its message."""
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, param)
    assert error["message"]
    assert words in error["message"]


@pytest.fixture(scope="session")
def renderer(model_path: Any) -> Iterator[Renderer]:
    with Renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=1)) as renderer:
        renderer.warm_up()
        renderer.pools.text.submit(int).result()  # starts the thread, which stays until the session ends
        renderer.prompts.max_model_len = MAX_MODEL_LEN
        yield renderer


@pytest.fixture
def use_template(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that sets the renderer's chat template for one test."""
    return lambda template: monkeypatch.setattr(renderer, "config", replace(renderer.config, chat_template=template))


@pytest.fixture(scope="session")
def encode(renderer: Renderer) -> Callable[[str], list[int]]:
    """A function that returns a text's token ids, without special tokens."""
    return lambda text: renderer.tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="session")
def _shared_engine() -> ScriptedEngine:
    return ScriptedEngine([])


@pytest.fixture
def engine(_shared_engine: ScriptedEngine, encode: Callable[[str], list[int]]) -> ScriptedEngine:
    """The engine of all servers, which is reset before each test."""
    _shared_engine.reset(encode(TEXT))
    return _shared_engine


class FinishedStart:
    """A fake start that took two seconds."""

    def progress(self) -> dict[str, Any]:
        return {"phase": "load_weights", "progress": 0.5, "elapsed_s": 1.0, "eta_s": 1.0}

    def report(self) -> bytes:
        return b'{"outcome":"ready"}'

    def elapsed_s(self) -> float:
        return 2.0

    def uptime_s(self) -> float:
        return 60.0

    def info(self) -> StartInfo:
        return StartInfo("cold", 'no "standby"')

    def phase_seconds(self) -> dict[str, float]:
        return {"engine:load_weights": 0.5}


@pytest.fixture(scope="session")
def _start(renderer: Renderer, _shared_engine: ScriptedEngine) -> Callable[..., Any]:
    def start(
        renderer: Renderer = renderer,
        limits: LimitsConfig | None = None,
        lifecycle: Lifecycle | None = None,
        **options: Any,
    ) -> Any:
        config = server_config(**({"served_model_names": (MODEL,)} | options))
        return run_app(config, renderer, _shared_engine, limits=limits, lifecycle=lifecycle)

    return start


@pytest.fixture(scope="session")
def _shared_server(_start: Callable[..., Any]) -> Iterator[LiveServer]:
    with _start() as server:
        yield server


@pytest.fixture
def server(_shared_server: LiveServer, engine: ScriptedEngine) -> LiveServer:
    """A server with default settings. All tests share it."""
    return _shared_server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def serve(_start: Callable[..., Any], engine: ScriptedEngine) -> Iterator[Callable[..., LiveServer]]:
    """Starts a server for one test. Keyword arguments that `_start` does not have go to ServerConfig."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_start(**options))


def ready_lifecycle() -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.engine_ready()
    return lifecycle


@contextmanager
def run_app(
    config: ServerConfig,
    renderer: Renderer,
    engine: Any,
    *,
    limits: LimitsConfig | None = None,
    lifecycle: Lifecycle | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> Iterator[LiveServer]:
    """Serves the application with a fake engine in a thread. It is ready unless a lifecycle is given."""
    lifecycle, admission = lifecycle or ready_lifecycle(), Admission(limits or LimitsConfig())
    metrics = ServerMetrics(config.served_model_names[0], FinishedStart(), renderer, lifecycle, admission.num_rejected)
    metrics.register_engine(engine.info, lambda: engine.stats)
    parts = AppParts(
        config=config,
        models=ServedModels(config.served_model_names, engine, root=config.model),
        renderer=renderer,
        engine=engine,
        metrics=metrics,
        lifecycle=lifecycle,
        start=FinishedStart(),
        admission=admission,
        api_keys=ApiKeys.from_config(config.network),
        version="1.2.3",
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only if the protocol is named
    # No idle connection is closed, because the client might use it at the same moment.
    serving = Serving(
        handle=ServerApp(parts), limits=parts.admission.limits, held=parts.admission.held, keep_alive_s=600
    )
    http_server = HttpServer(serving)
    runner = asyncio.Runner(loop_factory=loop_factory)
    started = threading.Event()

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # the loop keeps the thread for /metrics
        await asyncio.to_thread(int)
        started.set()
        await http_server.serve(listener)

    def run() -> None:
        with runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="http-server")
    thread.start()
    try:
        assert started.wait(PATIENT_S)
        with httpx.Client(**_HTTP) as client:
            yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", parts, engine, client)
    finally:
        runner.get_loop().call_soon_threadsafe(http_server.stop.set)
        thread.join(PATIENT_S)
        assert not thread.is_alive(), f"connections {serving.connections}, requests {serving.tasks}"


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits until a condition is true, which the server's thread makes true."""
    return poll
