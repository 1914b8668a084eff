"""The engine process and its start: the start method, a start in a thread, and the running process."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import EngineStartError
from envs.registry import START_METHODS
from server.terms.config import EngineConfig, ModelFiles
from startup.embedded.engine_process import EngineStarter
from startup.files.model.checkpoint_folder import modeling_module
from startup.logs.options import LogOptions
from startup.processes.group_signals import GROUP_SIGNALS
from startup.reports.crash.output_record import OutputRecord
from tests.support.cli import python_output
from tests.support.waiting import disturbing


def _run(model: Path, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, Path(__file__).with_name("engine_script.py"), model, method, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=240)


@pytest.mark.thorough
def test_the_forkserver_imports_the_models_class_before_it_forks(model_path):
    run = _run(model_path, "forkserver", "--modules")
    assert json.loads(run.stdout) == ["torch", "server.engine.build", "transformers.models.llama.modeling_llama"]


@pytest.mark.thorough
@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"model_type": 3}', '{"model_type": "../x"}'])
def test_an_unusable_config_has_no_model_class(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert modeling_module(tmp_path) is None


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
def test_processes_ignore_group_signals_from_their_start_on(tmp_path, method):
    run = _run(tmp_path, method, "--statuses")
    assert run.returncode == 0, run.stderr
    *new, parent = (disturbing(status, GROUP_SIGNALS) for status in json.loads(run.stdout))
    assert new == [set()] * (2 if method == "forkserver" else 1)
    assert parent == disturbing(Path("/proc/thread-self/status").read_text(), GROUP_SIGNALS)  # unchanged: see nohup(1)


@pytest.mark.thorough
def test_an_engine_that_cannot_read_its_requests_exits(model_path):
    run = _run(model_path, "spawn", "--garble")
    assert json.loads(run.stdout) == {"exitcode": 4}
    assert "the engine failed" in run.stderr


def _without_files() -> ModelFiles:
    raise OSError("no files")


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_the_switch_interval_is_restored_after_a_start_in_a_thread(is_abandoned, tmp_path):
    before = sys.getswitchinterval()
    context, record = multiprocessing.get_context("forkserver"), OutputRecord(tmp_path)
    starter = EngineStarter(context, _without_files, EngineConfig(), LogOptions(level="INFO"), record)
    assert sys.getswitchinterval() < before
    if not is_abandoned:
        with pytest.raises(EngineStartError, match="no files"):
            starter.wait_started()
    starter.close()
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize(("before", "method"), [*((None, method) for method in START_METHODS), ("spawn", "forkserver")])
def test_method_is_in_force_afterwards_even_if_a_library_has_set_another_one(before, method):
    out = python_output(
        "import multiprocessing\n"
        f"multiprocessing.set_start_method({before!r}, force=True)\n"
        "from startup.embedded.engine_process import use_start_method\n"
        f"context = use_start_method({method!r})\n"
        "print(multiprocessing.get_start_method(), context.get_start_method())\n"
    )
    assert out.split() == [method, method]
