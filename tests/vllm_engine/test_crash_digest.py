"""Real vLLM crashes in each process and phase. The digest names the right cause.

One crash takes 5 to 15 s. `-k worker` runs some of the crashes.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.waiting import wait_until
from tests.vllm_engine.conftest import SMALL
from tests.vllm_engine.crashes import crash_plugin
from tests.vllm_engine.crashes.crashes import CRASHES, Crash
from tests.vllm_engine.plugin import write_entry_point
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.vllm_server import VllmServer
from vllm_cli.explain.table import KNOWN

_END_S = 300.0
_FAILED = 3


class _End(NamedTuple):
    """How a server ended."""

    code: int
    lines: list[str]
    """All lines of its output."""

    @property
    def digest(self) -> list[str]:
        return self.lines[max(index for index, line in enumerate(self.lines) if line.startswith("Error: ")) :]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> StartFolders:
    return StartFolders(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    write_entry_point(folder, crash_plugin)
    return folder


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_ends_with_its_cause(name, folders, plugins, small_model):
    crash = CRASHES[name]
    end = _provoke(crash, folders, plugins, small_model)
    first, second, *others = end.digest
    assert crash.process in first, end.digest
    assert crash.phase in first, end.digest
    assert crash.text in second, end.digest
    shown = [line.removeprefix("Do: ") for line in others if line.startswith("Do: ")]
    known = [cause for cause in KNOWN if cause.advice in shown]
    assert (crash.cause in [cause.name for cause in known]) if crash.cause else known == [], end.digest
    assert others[-1].startswith("Log: "), end.digest
    assert end.code == _FAILED or (crash.is_serving and end.code > 0)


def _provoke(crash: Crash, folders: StartFolders, plugins: Path, small_model: Path) -> _End:
    model = small_model if crash.model == "small" else Path(folders.fill(crash.model))
    arguments = ("--preflight", "off", *SMALL, *map(folders.fill, crash.arguments))
    variables = {
        "PYTHONPATH": str(plugins),
        **({crash_plugin.VARIABLE: crash.at} if crash.at else {"VLLM_PLUGINS": ""}),
        **{name: folders.fill(value) for name, value in crash.variables.items()},
    }
    folder = folders.path("folder")
    with VllmServer("ours", model, *arguments, folder=folder, environment=variables) as server:
        if crash.is_serving:
            wait_until(
                lambda: server.ask("/health", timeout_s=5).status == 200 or server.process.poll() is not None, _END_S
            )
            server.ask("/v1/completions", {"prompt": "A", "max_tokens": 4}, timeout_s=60)  # fails with the engine
        return _End(server.process.wait(_END_S), server.log.splitlines())
