"""Valid starts pass the preflight, and faulty starts end with the cause. Real vLLM agrees about both."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.peer_vllm import PYTHON, ROOT, ask_vllm
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.written_starts import WrittenStart, written_starts

pytestmark = pytest.mark.versions

_STARTS = {start.text: start for start in written_starts() if start.stage in ("parse", "config", "later", "done")}
_SCRIPT = Path(__file__).parent / "preflight" / "vllm_starts.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starts")


@pytest.fixture(scope="module", autouse=True)
def _recorded(folder: Path) -> None:
    """Runs a start that records vLLM's flags and names."""
    code = "from tests.vllm_engine.preflight.vllm_parser import record_vllm; assert record_vllm().flags"
    environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([PYTHON, "-c", code], env=environment, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folders(folder: Path) -> StartFolders:
    return StartFolders(folder)


@pytest.fixture(scope="module")
def stages(folders: StartFolders, folder: Path) -> dict[str, dict[str, str]]:
    """For each start, the stage in which vLLM itself ends, and its error."""
    question = [_fill(folders, start) for start in _STARTS.values()]
    answers: list[dict[str, str]] = ask_vllm(_SCRIPT, question, folder, timeout_s=2400)
    return dict(zip(_STARTS, answers, strict=True))


def _fill(folders: StartFolders, start: WrittenStart) -> dict[str, Any]:
    return {
        "arguments": [folders.fill(argument) for argument in start.arguments],
        "variables": {name: folders.fill(value) for name, value in start.variables.items()},
    }


def _errors(folders: StartFolders, folder: Path, given: WrittenStart) -> list[str]:
    """The messages of the preflight's errors."""
    start = _fill(folders, given)
    path = os.pathsep.join(filter(None, (str(ROOT), start["variables"].pop("PYTHONPATH", ""))))
    cache = {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": path}
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", "--preflight-only", "--json", *start["arguments"]]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ | cache | start["variables"], timeout=100
    )
    findings = json.loads(done.stdout)["findings"]
    return [finding["message"] for finding in findings if finding["severity"] == "error"]


@pytest.mark.parametrize("text", [text for text, start in _STARTS.items() if start.stage == "done"])
def test_a_valid_start_is_not_refused(folders, folder, stages, text):
    assert _errors(folders, folder, _STARTS[text]) == []
    assert stages[text]["stage"] == "done", stages[text]["error"]


@pytest.mark.parametrize("text", [text for text, start in _STARTS.items() if start.stage != "done"])
def test_a_faulty_start_is_refused(folders, folder, stages, text):
    start = _STARTS[text]
    (_, part), *_ = start.parts
    assert any(part in message for message in _errors(folders, folder, start))
    reached, expected = stages[text], ("config", "serving", "done") if start.stage == "later" else (start.stage,)
    assert reached["stage"] in expected, reached["error"]


@pytest.mark.parametrize("name", ["VLLM_CONFIGURE_LOGGING", "VLLM_ENGINE_READY_TIMEOUT_S"])
def test_a_variable_that_prevents_vllms_imports_is_told_by_vllm(name, folders, tmp_path):
    """vLLM reads the first one when it is imported, the second one in a module with its flags."""
    variables = {"VLLM_CACHE_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", name: ""}
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", "--preflight-only", folders.fill("{model}")]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3
    assert "invalid literal for int() with base 10: ''" in done.stdout
    assert "could not be checked" in done.stdout
