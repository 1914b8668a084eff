"""Starts vLLM's engine before the API server loads its tokenizers, which the engine does not need.

vLLM's `AsyncLLM` makes its renderer, with the tokenizer and two copies of it, and only then starts the
engine. Here the engine's process is started first, with the same arguments; renderer and input processor are
made while it loads the model.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from startup.ground.hooks.hook import Hook, Name, Text
from startup.ground.processes import group_signals
from startup.imports.finder import after_import, wrap_after_import

_ASYNC_LLM: Final = "vllm.v1.engine.async_llm"
_CLIENT_PARAMETERS: Final = ("vllm_config", "executor_class", "client_addresses", "client_count", "client_index")
"""Parameters of `AsyncLLM` that it passes on to its client of the engine."""
_RENDERER_FACTORY: Final = Name(_ASYNC_LLM, "renderer_from_config", ("config",))
_INPUT_PROCESSOR: Final = Name(_ASYNC_LLM, "InputProcessor")
_ENGINE_CLIENT: Final = Name(_ASYNC_LLM, "EngineCoreClient")
EARLY_ENGINE: Final = Hook(
    "early engine",
    does="starts the engine before the API server loads its tokenizers",
    without="the engine starts after the tokenizers are loaded",
    needs=(
        Name(_ASYNC_LLM, "AsyncLLM.__init__", (*_CLIENT_PARAMETERS, "log_stats")),
        _RENDERER_FACTORY,
        _INPUT_PROCESSOR,
        _ENGINE_CLIENT,
        Name("vllm.v1.engine.core_client", "EngineCoreClient.make_async_mp_client", (*_CLIENT_PARAMETERS, "log_stats")),
        Text((_ASYNC_LLM,), r"renderer_from_config\(self\.vllm_config\)", "the call of renderer_from_config"),
        Text(
            (_ASYNC_LLM,),
            r"InputProcessor\(self\.vllm_config, renderer\)",
            "InputProcessor(self.vllm_config, renderer)",
        ),
    ),
)

_WAIT_FOR_ENGINE: Final = Name("vllm.v1.engine.utils", "wait_for_engine_startup")
ENGINE_WAIT: Final = Hook(
    "wait for the engine",
    does="imports the rest of the API server while vLLM waits for its engine",
    without="it is imported before or after the wait",
    needs=(_WAIT_FOR_ENGINE,),
)

_END_S: Final = 30.0
"""How long a wait may take to end after its engine was stopped."""

_RENDERER: Final = _RENDERER_FACTORY.path
_PROCESSOR: Final = _INPUT_PROCESSOR.path
_CLIENT: Final = _ENGINE_CLIENT.path

_LAUNCHER: Final = "vllm.entrypoints.launchers.launcher"
_TERMINATE: Final = Name(_LAUNCHER, "terminate_if_errored", ("server", "engine"))
_WATCH: Final = Name(_LAUNCHER, "watchdog_loop", ("server", "engine"))
ENGINE_DEATH: Final = Hook(
    "engine's death",
    does="ends the API server half a second after its engine has died, with an exit code that tells it",
    without="the server ends up to five seconds later, with exit code 0",
    needs=(_TERMINATE, _WATCH),
)
_INTERVAL_S: Final = 0.25


def start_engine_early(wait: "EngineWait") -> None:
    """From now on, vLLM's asynchronous client starts its engine first."""
    if EARLY_ENGINE.applies:
        after_import(_ASYNC_LLM, functools.partial(_replace_init, wait), EARLY_ENGINE)


def _replace_init(wait: "EngineWait", module: Any) -> None:
    init = module.AsyncLLM.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_with_early_engine(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        start = _EarlyStart(module, self, {name: bound.arguments[name] for name in _CLIENT_PARAMETERS}, wait)
        replaced = {name: getattr(module, name) for name in (_RENDERER, _PROCESSOR, _CLIENT)}
        vars(module).update({_RENDERER: start.renderer, _PROCESSOR: start.processor, _CLIENT: start})
        try:
            init(self, *args, **kwargs)
        finally:
            vars(module).update(replaced)
            start.close()

    module.AsyncLLM.__init__ = init_with_early_engine


class _EarlyStart:
    """Stands in `AsyncLLM.__init__` for the functions that make renderer, input processor and client."""

    def __init__(self, module: Any, owner: Any, arguments: Mapping[str, Any], wait: "EngineWait") -> None:
        self._owner = owner
        self._arguments = arguments
        self._wait = wait
        self._make_renderer = getattr(module, _RENDERER)
        self._make_processor = getattr(module, _PROCESSOR)
        self._client_class = getattr(module, _CLIENT)
        self._client: Any = None
        self._renderer: Any = None
        self._processor: Any = None

    def renderer(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        """Starts the engine and makes the renderer while it loads."""
        if args or kwargs or config is not self._arguments["vllm_config"]:
            return self._make_renderer(config, *args, **kwargs)
        self._wait.add(self._make_both)
        self._client = self._client_class.make_async_mp_client(**self._arguments, log_stats=self._owner.log_stats)
        self._wait.do_work()
        return self._renderer

    def processor(self, config: Any, renderer: Any, **kwargs: Any) -> Any:
        """The input processor that was made with the renderer."""
        if kwargs or config is not self._arguments["vllm_config"] or renderer is not self._renderer:
            return self._make_processor(config, renderer, **kwargs)
        return self._processor

    def make_async_mp_client(self, *, renderer: Any = None, **arguments: Any) -> Any:
        """The client that was started, if vLLM wants one with the same arguments."""
        client, self._client = self._client, None
        if client is not None and arguments == {**self._arguments, "log_stats": self._owner.log_stats}:
            if hasattr(client, "_renderer"):
                client._renderer = renderer
            return client
        if client is not None:
            client.shutdown()
        more = {} if renderer is None else {"renderer": renderer}
        return self._client_class.make_async_mp_client(**arguments, **more)

    def close(self) -> None:
        """Stops an engine that was started but not taken, because of an error after its start."""
        if self._client is not None:
            self._client.shutdown()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client_class, name)

    def _make_both(self) -> None:
        config = self._arguments["vllm_config"]
        self._renderer = self._make_renderer(config)
        self._processor = self._make_processor(config, self._renderer)
        if (warm_up := getattr(self._renderer, "start_mm_warmup_in_background", None)) is not None:
            warm_up()


class EngineWait:
    """Work for the time from the start of the engine's process until the engine is ready.

    Used on the main thread. Work that is added after the wait, or if this vLLM has no such wait, runs in
    `do_work`.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], None]] = []
        self._waiting: _Waiting | None = None

    def add(self, work: Callable[[], None]) -> None:
        """Work in order of addition; an error ends the start, as it does outside the wait."""
        self._work.append(work)

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed while the work is being done, which is of no use then."""
        return self._waiting is not None and self._waiting.error is not None

    def do_work(self) -> None:
        """Does what is left."""
        while self._work and not self.has_failed:
            self._work.pop(0)()

    def hook(self) -> None:
        """From now on, the work is done during vLLM's wait."""
        if ENGINE_WAIT.applies:
            wrap_after_import(_WAIT_FOR_ENGINE, self._with_work, ENGINE_WAIT)

    def _with_work(self, wait: Callable[..., None]) -> Callable[..., None]:
        def wait_and_work(*args: Any, **kwargs: Any) -> None:
            is_main = threading.current_thread() is threading.main_thread()
            if not self._work or not is_main:
                wait(*args, **kwargs)
                return
            waiting = self._waiting = _Waiting(functools.partial(wait, *args, **kwargs))
            try:
                self.do_work()
                waiting.join()
            except BaseException:
                waiting.end((*args, *kwargs.values()))
                raise

        return wait_and_work


class _Waiting:
    """vLLM's wait on a thread of its own."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine-wait", daemon=True)
        group_signals.start_thread(self._thread)

    def join(self) -> None:
        """Waits until the engine is ready; raises what vLLM's wait raises."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def end(self, arguments: tuple[Any, ...]) -> None:
        """Stops the engine, which ends the wait: its socket must not be closed while the thread reads it."""
        if not self._thread.is_alive():
            return
        for argument in arguments:
            manager = getattr(argument, "engine_manager", None)
            if manager is not None:
                manager.shutdown()
        self._thread.join(_END_S)

    def _run(self) -> None:
        try:
            self._wait()
        except BaseException as err:  # noqa: BLE001 - raised by `join`
            self.error = err


def notice_engine_death(on_death: Callable[[], None]) -> None:
    """From now on, `on_death` is called when the API server ends because its engine has died."""
    if ENGINE_DEATH.applies:
        after_import(_LAUNCHER, lambda module: _replace_watch(module, on_death), ENGINE_DEATH)


def _replace_watch(module: Any, on_death: Callable[[], None]) -> None:
    import asyncio  # noqa: PLC0415 - vLLM has imported it by now

    terminate = _TERMINATE.get(module)

    def terminate_and_notice(server: Any, engine: Any) -> None:
        lifecycle = getattr(server.config.loaded_app, "lifecycle", None) if server.config.loaded else None
        is_drained = lifecycle is not None and lifecycle.state == "draining"
        is_stopped = server.should_exit or is_drained  # by a signal: its engine then ends, too
        terminate(server, engine)
        if server.should_exit and engine.errored and not is_stopped:
            on_death()

    async def watch(server: Any, engine: Any) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            terminate_and_notice(server, engine)

    _TERMINATE.replace(module, terminate_and_notice)
    _WATCH.replace(module, watch)
