"""On GPUs, too, code of others runs when each process has imported no more than in plain vLLM.

There, the engine of one GPU is its own worker. On CPUs, for which `tests/vllm_engine/test_others_code.py` is,
each worker is a process.
"""

from pathlib import Path

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer
from tests.vllm_engine.others_code import INSPECTION, MEMBERS, NAMES, imported_before


def _imported(launcher: str, folder: Path, *arguments: str) -> dict[str, set[str]]:
    """The modules that each process of a start with a general plugin has imported before the plugin."""
    variables = {**MEMBERS["general plugin"].write(folder / f"{launcher} code"), "STUB_GPUS": "2"}
    home = folder / f"{launcher} home"
    home.mkdir()
    with GpuServer(launcher, *EAGER, *arguments, folder=home, environment=variables) as server:
        server.wait_ready()
    return imported_before(Path(variables[NAMES]))


@pytest.mark.parametrize("arguments", [(), ("--pipeline-parallel-size", "2")], ids=["one GPU", "two GPUs"])
def test_a_plugin_runs_before_the_imports_that_it_may_change(arguments, tmp_path):
    expected, imported = (_imported(launcher, tmp_path, *arguments) for launcher in ("plain", "ours"))
    assert imported.keys() == expected.keys()
    for process in imported.keys() - {INSPECTION}:
        assert sorted(imported[process] - expected[process]) == [], f"imported too early in {process}"
