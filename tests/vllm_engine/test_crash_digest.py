"""Crashes of real vLLM, provoked in each process and phase, end with a digest that names the right cause.

One crash takes 5 to 15 s. `-k worker` runs some of them.
"""

import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.http_answer import ask
from tests.peer_vllm import PYTHON, ROOT
from tests.ports import free_port
from tests.vllm_engine.crashes import crash_plugin
from tests.vllm_engine.crashes.crashes import CRASHES, Crash
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.waiting import wait_until

_END_S = 300.0
_FAILED = 3
_SMALL = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")


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
    crash_plugin.write_entry_point(folder)
    return folder


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_ends_with_its_cause(name, folders, plugins, small_model, two_ranks):
    crash = CRASHES[name]
    end = _provoke(crash, folders, plugins, small_model, two_ranks if crash.num_workers == 2 else {})
    first, second, *others = end.digest
    assert crash.process in first, end.digest
    assert crash.phase in first, end.digest
    assert crash.text in second, end.digest
    shown = [line.rpartition("#")[2] for line in others if line.startswith("Do: ") and "#" in line]
    assert shown == ([crash.cause] if crash.cause else []), end.digest
    assert others[-1].startswith("Log: "), end.digest
    assert end.code == _FAILED or (crash.is_serving and end.code > 0)


def _provoke(crash: Crash, folders: StartFolders, plugins: Path, small_model: Path, variables: dict[str, str]) -> _End:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    model = str(small_model) if crash.model == "small" else folders.fill(crash.model)
    words = [folders.fill(word) for word in crash.words]
    command = [PYTHON, "-m", "vllm_cli", "serve", model, "--engine", "vllm", "--preflight", "off", *_SMALL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--tensor-parallel-size", str(crash.num_workers), *words]
    own = {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(plugins))),
        "VLLM_CACHE_ROOT": str(folders.path("folder") / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **({crash_plugin.VARIABLE: crash.at} if crash.at else {"VLLM_PLUGINS": ""}),
        **{name: folders.fill(value) for name, value in crash.variables.items()},
    }
    log = folders.path("folder") / f"log-{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=os.environ | variables | own
        )
    try:
        if crash.is_serving:
            wait_until(lambda: ask(f"{url}/health", timeout_s=5).status == 200 or process.poll() is not None, _END_S)
            _complete(url)
        process.wait(_END_S)
    finally:
        process.kill()
        process.wait()
    return _End(process.returncode, log.read_text(errors="replace").splitlines())


def _complete(url: str) -> None:
    """A request, which fails with the engine."""
    body = b'{"prompt": "A", "max_tokens": 4}'
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except (urllib.error.URLError, OSError):
        return
