"""Ends vLLM's API server soon after its engine has died, with the exit code for a dead engine."""

from collections.abc import Callable
from typing import Any, Final

from startup.hook import Hook, Name
from startup.imports.finder import after_import

_LAUNCHER: Final = "vllm.entrypoints.launchers.launcher"
_TERMINATE: Final = Name(_LAUNCHER, "terminate_if_errored", ("server", "engine"))
_WATCH: Final = Name(_LAUNCHER, "watchdog_loop", ("server", "engine"))
ENGINE_DEATH: Final = Hook(
    "engine's death",
    does="ends the API server half a second after its engine",
    without="the server ends up to five seconds later, with exit code 0",
    promise="exit code 1 when the engine dies",
    needs=(_TERMINATE, _WATCH),
)
_INTERVAL_S: Final = 0.05


def notice_engine_death(on_death: Callable[[], None]) -> None:
    """From now on, `on_death` is called when the API server ends because its engine has died."""
    if ENGINE_DEATH.applies:
        after_import(_LAUNCHER, lambda module: _replace_watch(module, on_death), ENGINE_DEATH)


def _replace_watch(module: Any, on_death: Callable[[], None]) -> None:
    import asyncio  # noqa: PLC0415 - vLLM has imported it by now

    terminate = _TERMINATE.get(module)

    async def watch(server: Any, engine: Any) -> None:
        """Sees each dead engine: uvicorn's shutdown, which a failed request may begin, takes 0.1 s."""
        is_stopped = False  # by a signal, after which the engine ends, too
        while True:
            await asyncio.sleep(_INTERVAL_S)
            lifecycle = getattr(server.config.loaded_app, "lifecycle", None) if server.config.loaded else None
            if lifecycle is not None:
                is_stopped = lifecycle.state == "draining"
            elif server.should_exit and not engine.errored:
                is_stopped = True
            terminate(server, engine)
            if server.should_exit and engine.errored and not is_stopped:
                on_death()

    _WATCH.replace(module, watch)
