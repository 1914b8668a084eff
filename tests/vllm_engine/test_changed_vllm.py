"""A vLLM whose internals have changed starts with one warning, which `vllm-cli preload check` predicts.

The changed vLLM is the real one, hard-linked, with single files replaced.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.peer_vllm import PYTHON, ROOT
from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import title_of

SITE = next(PYTHON.parents[1].glob("lib/python3*/site-packages"), Path())


class Change(NamedTuple):
    """A text in a module of vLLM that is replaced, and the hook that needed it."""

    module: str
    old: str
    new: str
    hook: str
    is_essential: bool


CHANGES = {
    "essential": Change(
        "vllm.utils.system_utils",
        "multiprocessing.get_context(",
        "multiprocessing.context._default_context.get_context(",
        "process start",
        is_essential=True,
    ),
    "speed-up": Change(
        "vllm.model_executor.models.registry",
        "_run_in_subprocess",
        "_inspect_elsewhere",
        "model inspection",
        is_essential=False,
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_warning_names_the_hook_that_the_check_reports(
    change: Change, start_vllm: StartVllm, expected_text: str, tmp_path: Path
) -> None:
    _write_changed(tmp_path, change)
    environment = {"PYTHONPATH": str(tmp_path), "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    command = [str(PYTHON), "-m", "vllm_cli", "preload", "check", "--json"]
    with_own = {**os.environ, **environment, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=with_own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    unfit = [entry["hook"] for entry in json.loads(done.stdout)["hooks"] if entry["state"] == "does not fit"]
    assert unfit == [change.hook]
    with start_vllm("ours", environment=environment) as server:
        assert server.wait_ready().generate() == expected_text
        (warning,) = [line for line in server.log.splitlines() if line.startswith("WARNING") and "hook" in line]
        assert f"'{change.hook}'" in warning
        assert ("without preloading" in warning) == change.is_essential
        has_forkserver = any("forkserver import main" in title_of(process) for process in server.family())
        assert has_forkserver != change.is_essential
        assert "Traceback" not in server.log


def _write_changed(folder: Path, change: Change) -> None:
    """Copies vLLM and its distributions into a folder for PYTHONPATH, and replaces the text."""
    for package in (SITE / "vllm", *SITE.glob("vllm*.dist-info")):
        shutil.copytree(package, folder / package.name, copy_function=os.link)
    path = folder / f"{change.module.replace('.', '/')}.py"
    text = path.read_text()
    assert change.old in text
    path.unlink()
    path.write_text(text.replace(change.old, change.new))
