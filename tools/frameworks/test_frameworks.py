"""Client libraries with their defaults: text, streams, structured answers, tools, and a loop of tools."""

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.server_process import ServerProcess
from tools.frameworks.clients.scenario import ANSWER, CITY, WEATHER_ANSWER, WEATHER_CALL
from tools.frameworks.environment import install_clients

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS: Final = Path(__file__).parent / "clients"
ALL: Final = ("text", "stream", "structured", "tools", "loop")
FEATURES: Final = {
    "use_anthropic": ALL,
    "use_instructor": ("structured", "structured_stream"),
    "use_langchain": ALL,
    "use_litellm": ALL,
    "use_llama_index": ALL,
    "use_openai": ALL,
    "use_openai_agents": (*ALL, "streamed_loop", "stored_loop"),
    "use_openai_agents_chat": ALL,
    "use_openai_responses": (*ALL, "stored_loop", "background"),
    "use_pydantic_ai": ALL,
}
OFFLINE: Final = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results_of(server: ServerProcess) -> Callable[[str], Results]:
    """The results of a client, which runs once."""
    python = install_clients()

    @cache
    def run(client: str) -> Results:
        command = [python, CLIENTS / f"{client}.py", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | OFFLINE)
        assert done.returncode == 0, done.stderr[-4000:]
        results: Results = json.loads(done.stdout.splitlines()[-1])
        return results

    return run


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
        case "text" | "background":
            assert value == ANSWER
        case "stream":
            assert "".join(filter(None, value)) == ANSWER
            assert len(value) > 5
        case "structured" | "structured_stream":
            assert value == CITY
        case "tools":
            assert value == [WEATHER_CALL]
        case "loop" | "streamed_loop" | "stored_loop":
            assert value == WEATHER_ANSWER
