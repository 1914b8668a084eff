"""Client libraries, agents with two models of a router, and Claude Code, as users install them.

The tests install them below build/, and install the libraries again when their requirements change.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.server_process import ServerProcess
from tests.router.router_process import RouterProcess
from tools.frameworks.agent_model import save_agent_model
from tools.frameworks.clients.scenario import (
    ANSWER,
    CITY,
    MEMORY,
    MODEL,
    NOTE,
    NOTE_ANSWER,
    READ_NOTE,
    WEATHER_ANSWER,
    WEATHER_CALL,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BUILD: Final = Path(__file__).parents[2] / "build"
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
CLAUDE_CODE: Final = "@anthropic-ai/claude-code@2.1.332"
CLIENTS: Final = Path(__file__).parent / "clients"
ALL: Final = ("text", "stream", "structured", "tools", "loop")
FEATURES: Final = {
    "use_anthropic": ALL,
    "use_instructor": ("structured", "structured_stream"),
    "use_langchain": ALL,
    "use_litellm": ALL,
    "use_llama_index": ALL,
    "use_openai": ALL,
    "use_openai_agents": (*ALL, "streamed_loop"),
    "use_openai_agents_chat": ALL,
    "use_openai_responses": ALL,
    "use_pydantic_ai": ALL,
}
OFFLINE: Final = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
AGENT_FLAGS: Final = (
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
    "--override-generation-config.temperature",
    "0",
)

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose model answers like an agent."""
    folder = save_agent_model(tmp_path_factory.mktemp("agent"), MEMORY)
    with ServerProcess([str(folder), "--served-model-name", MODEL, *AGENT_FLAGS]) as running:
        yield running


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the environment with the client libraries."""
    folder = BUILD / "frameworks"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        uv = Path(sys.executable).with_name("uv")  # resolves in seconds what takes Python's own pip minutes
        _install([uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", "-r", REQUIREMENTS])
        stamp.write_text(wanted)
    return folder / "bin" / "python"


@pytest.fixture
def claude() -> Path:
    folder = BUILD / "claude-code"
    command = folder / "node_modules" / ".bin" / "claude"
    if not command.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        _install([npm, "install", "--silent", "--prefix", folder, CLAUDE_CODE])
    return command


def _install(command: list[str | Path]) -> None:
    """Installs clients. Skips the test if that fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the clients cannot be installed: {done.stderr[-500:]}")


def _run_client(python: Path, client: str, url: str) -> Results:
    command = [python, CLIENTS / f"{client}.py", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | OFFLINE)
    assert done.returncode == 0, done.stderr[-4000:]
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def results_of(server: ServerProcess, python: Path) -> Callable[[str], Results]:
    """Returns the results of a client. Each client runs once."""
    return cache(lambda client: _run_client(python, client, server.url))


def test_every_client_is_tested():
    assert {path.stem for path in CLIENTS.glob("use_*.py")} == set(FEATURES)


@pytest.mark.parametrize(
    ("client", "feature"), [(client, feature) for client, features in FEATURES.items() for feature in features]
)
def test_a_client_works_with_its_defaults(results_of, client, feature):
    result = results_of(client)[feature]
    assert "error" not in result, result["error"]
    value = result["value"]
    match feature:
        case "text":
            assert value == ANSWER
        case "stream":
            assert "".join(filter(None, value)) == ANSWER
            assert len(value) > 5
        case "structured" | "structured_stream":
            assert value == CITY
        case "tools":
            assert value == [WEATHER_CALL]
        case "loop" | "streamed_loop":
            assert value == WEATHER_ANSWER


def test_agents_switch_models_within_a_conversation(python, tmp_path):
    """The router has room for only one of the two models."""
    first = save_agent_model(tmp_path / "first", MEMORY)
    second = shutil.copytree(first, tmp_path / "second")
    models = {folder.name: {"model": str(folder), "engine": "embedded"} for folder in (first, second)}
    with RouterProcess(tmp_path, models, "--max-running", "1", *AGENT_FLAGS) as router:
        results = _run_client(python, "switch_models", router.url)
        assert results == {name: {"value": [ANSWER, WEATHER_ANSWER]} for name in ("once", "again")}
        assert [model["num_starts"] for model in router.models().values()] == [2, 2]


def test_claude_code_calls_the_tool_that_the_model_asks_for(claude, server, tmp_path):
    (tmp_path / "note.txt").write_text(NOTE)
    environment = {
        "HOME": str(tmp_path),
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1000",
    }
    command = [claude, "-p", READ_NOTE, "--allowedTools", "Bash", "--output-format", "json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["result"] == NOTE_ANSWER
    assert result["num_turns"] == 2
