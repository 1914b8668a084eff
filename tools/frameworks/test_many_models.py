"""An agent framework whose agents use two models of one router, with room for one of them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.startup.router.router_process import RouterProcess
from tools.frameworks.agent_model import save_agent_model
from tools.frameworks.clients.scenario import ANSWER, MEMORY, WEATHER_ANSWER
from tools.frameworks.environment import install_clients

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_CLIENT = Path(__file__).parent / "clients" / "switch_models.py"


def test_agents_switch_models_within_a_conversation(tmp_path):
    python = install_clients()
    first = save_agent_model(tmp_path / "first", MEMORY)
    second = shutil.copytree(first, tmp_path / "second")
    models = {folder.name: {"model": str(folder), "engine": "embedded"} for folder in (first, second)}
    settings = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    greedy = ["--override-generation-config.temperature", "0"]
    with RouterProcess(tmp_path, models, "--max-running", "1", *settings, *greedy) as router:
        done = subprocess.run(
            [python, _CLIENT, router.url], capture_output=True, text=True, timeout=300, env=os.environ
        )
        assert done.returncode == 0, done.stderr[-4000:]
        results = json.loads(done.stdout.splitlines()[-1])
        assert results == {name: {"value": [ANSWER, WEATHER_ANSWER]} for name in ("once", "again")}
        assert [model["num_starts"] for model in router.models().values()] == [2, 2]
