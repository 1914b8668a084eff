"""What a start learns makes the next one faster: the preload profile, and vLLM's compile cache."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.peer_vllm import PYTHON, ROOT
from tests.vllm_engine.conftest import StartVllm
from tests.waiting import wait_until

pytestmark = pytest.mark.versions

FLAGS = ("--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")


class Starts:
    """Two starts of the compiled small model, with caches of their own."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"VLLM_CACHE_ROOT": str(folder)}
        self.texts: list[str] = []
        self.logs: list[str] = []
        self.profiles: list[dict[str, Any]] = []

    def add(self, start_vllm: StartVllm, model: Path) -> None:
        with start_vllm("ours", *FLAGS, model=model, environment=self.environment) as server:
            self.texts.append(server.wait_ready().generate())
            wait_until(lambda: self._only_profile()["num_starts"] == len(self.texts))
            self.logs.append(server.log)
        self.profiles.append(self._only_profile())

    def _only_profile(self) -> dict[str, Any]:
        command = [str(PYTHON), "-m", "vllm_cli", "preload", "show", "--json"]
        environment = {**self.environment, "PYTHONPATH": str(ROOT), "PATH": ""}
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
        profiles = json.loads(done.stdout)
        return profiles[0] if profiles else {"num_starts": 0}


@pytest.fixture(scope="module")
def starts(start_vllm: StartVllm, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Starts:
    starts = Starts(tmp_path_factory.mktemp("learning"))
    starts.add(start_vllm, small_model)
    starts.add(start_vllm, small_model)
    return starts


def test_the_second_start_preloads_what_the_first_has_recorded(starts):
    first, second = starts.profiles
    assert (first["num_starts"], second["num_starts"]) == (1, 2)
    assert len(first["engine_modules"]) > 20
    assert len(second["engine_modules"]) - len(first["engine_modules"]) < 20


def test_the_compiled_model_is_loaded_in_the_second_start(starts):
    assert "saved AOT compiled function" in starts.logs[0]
    assert "Directly load AOT compilation" in starts.logs[1]


def test_the_text_of_compiled_models_is_right(starts, expected_text):
    assert starts.texts == [expected_text] * 2
