"""The steps between the loaded model and readiness."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from base.errors import EngineStartError
from server.operation.engine_monitor import EngineReadiness
from server.types import EngineOutput, EngineStats


class Recorded:
    """Fakes of engine, renderer, metrics and adapters that record the order of calls."""

    def __init__(self, *, error: str | None = None, dies: bool = False) -> None:
        self.calls: list[str] = []
        self.info = SimpleNamespace(pooling=None, max_model_len=8, max_loras=None)
        self.error: str | None = None
        self.stats = EngineStats()
        self._output_error = error
        self._dies = dies

    async def wait_loaded(self, timeout_s: float) -> Any:
        self.calls.append(f"wait {timeout_s:g}")
        return self.info

    def configure(self, info: Any) -> None:
        assert info is self.info
        self.calls.append("configure")

    def register_engine(self, info: Any, read_stats: Any) -> None:
        assert info is self.info
        assert read_stats() is self.stats
        self.calls.append("register")

    async def run_in_pool(self, func: Any, *args: Any) -> Any:
        return func(*args)

    def render_text(self, text: str, options: Any) -> Any:
        self.calls.append("render")
        return SimpleNamespace(token_ids=[1])

    def create_detokenizer(self) -> Any:
        return SimpleNamespace(append=lambda token_ids: self.calls.append(f"append {token_ids}"))

    async def generate(self, request_id: str, prompts: Any) -> Any:
        self.calls.append("generate")
        yield EngineOutput(request_id=request_id, token_ids=[7], finish_reason="length", error=self._output_error)
        if self._dies:
            self.error = "killed"

    @contextmanager
    def span(self, name: str, **options: Any) -> Iterator[None]:
        self.calls.append(f"begin {name}")
        yield
        self.calls.append(f"end {name}")


def _readiness(recorded: Any) -> EngineReadiness:
    return EngineReadiness(recorded, recorded, recorded, recorded, timeout_s=5)


async def test_renderer_and_metrics_are_configured_before_the_first_token():
    recorded = Recorded()
    assert await _readiness(recorded).wait(recorded.span) is recorded.info
    assert recorded.calls == [
        "begin wait_for_engine",
        "wait 5",
        "end wait_for_engine",
        "configure",
        "register",
        "begin first_token",
        "render",
        "generate",
        "append [7]",
        "end first_token",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"error": "no memory"}, "the first token could not be generated: no memory"), ({"dies": True}, "killed")],
    ids=["the token fails", "the engine dies after its token"],
)
async def test_engine_without_a_first_token_is_not_ready(options, message):
    with pytest.raises(EngineStartError, match=message):
        await _readiness(Recorded(**options)).wait()
