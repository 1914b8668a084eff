"""Valid starts pass the preflight, and faulty starts end with the cause. Real vLLM agrees about both."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.peer_vllm import PYTHON, ROOT, ask_vllm
from tests.vllm_engine.preflight.faulty_starts import FAULTY_STARTS
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.valid_starts import VALID_STARTS

pytestmark = pytest.mark.versions

_SCRIPT = Path(__file__).parent / "preflight" / "vllm_starts.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starts")


@pytest.fixture(scope="module", autouse=True)
def _recorded(folder: Path) -> None:
    """Runs a start that records vLLM's facts."""
    code = "from tests.vllm_engine.preflight.vllm_parser import record; assert record().flags"
    environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([PYTHON, "-c", code], env=environment, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folders(folder: Path) -> StartFolders:
    return StartFolders(folder)


@pytest.fixture(scope="module")
def stages(folders: StartFolders, folder: Path) -> dict[str, dict[str, str]]:
    """For each start, the stage in which vLLM itself ends, and its error."""
    starts = {**VALID_STARTS, **FAULTY_STARTS}
    question = [_fill(folders, start.words, start.variables) for start in starts.values()]
    answers: list[dict[str, str]] = ask_vllm(_SCRIPT, question, folder, timeout_s=2400)
    return dict(zip(starts, answers, strict=True))


def _fill(folders: StartFolders, words: tuple[str, ...], variables: dict[str, str]) -> dict[str, Any]:
    return {
        "words": [folders.fill(word) for word in words],
        "variables": {name: folders.fill(value) for name, value in variables.items()},
    }


def _preflight(
    folders: StartFolders, folder: Path, words: tuple[str, ...], variables: dict[str, str]
) -> dict[str, Any]:
    start = _fill(folders, words, variables)
    path = os.pathsep.join(filter(None, (str(ROOT), start["variables"].pop("PYTHONPATH", ""))))
    cache = {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": path}
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", "--preflight-only", "--json", *start["words"]]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ | cache | start["variables"], timeout=100
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", VALID_STARTS)
def test_a_valid_start_is_not_refused(folders, folder, stages, name):
    start = VALID_STARTS[name]
    report = _preflight(folders, folder, start.words, start.variables)
    errors = [finding["message"] for finding in report["findings"] if finding["severity"] == "error"]
    assert errors == []
    assert stages[name]["stage"] == "done", stages[name]["error"]


@pytest.mark.parametrize("name", FAULTY_STARTS)
def test_a_faulty_start_is_refused(folders, folder, stages, name):
    start = FAULTY_STARTS[name]
    report = _preflight(folders, folder, start.words, start.variables)
    messages = [finding["message"] for finding in report["findings"] if finding["severity"] == "error"]
    assert any(start.message in message for message in (*messages, f"{len(messages)} faults"))
    reached, expected = stages[name], ("config", "serving", "done") if start.stage == "later" else (start.stage,)
    assert reached["stage"] in expected, reached["error"]
