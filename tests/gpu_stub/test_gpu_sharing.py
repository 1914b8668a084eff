"""A new machine's first start finds the kernels of a filled location, or of a builder without a GPU."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_stub.gpu_router import PREFIX, needs_root
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, GpuServer, gpu_variables
from tests.gpu_stub.recipe_models import save_llama
from tests.support.peer_vllm import ROOT


def _bake(home: Path, *arguments: object, variables: Mapping[str, str], prefix: tuple[str, ...] = ()) -> None:
    home.mkdir()
    command = [*prefix, PYTHON, "-m", "vllm_cli", "bake", MODEL, "--engine", "vllm", *EAGER, *map(str, arguments)]
    done = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


def _kernels_of_first_start(home: Path, *arguments: str, model: Path = MODEL, **variables: str) -> Mapping[str, Any]:
    home.mkdir()
    with GpuServer("ours", *EAGER, *arguments, folder=home, model=model, environment=variables) as server:
        server.wait_ready().generate()
        reported = server.get("/startupz")["kernels"]
        assert server.terminate(signal.SIGTERM) == 0
    return dict(reported)


@needs_root
@pytest.mark.parametrize("is_same_model", [True, False], ids=["same model", "second model"])
def test_a_filled_location_has_the_kernels_of_all_models(tmp_path, is_same_model):
    home, location = tmp_path / "filler", tmp_path / "location"
    _bake(home, "--compile-cache", location, variables=gpu_variables(home), prefix=PREFIX)
    model = MODEL
    if not is_same_model:
        model = tmp_path / "llama"
        model.mkdir()
        save_llama(model)
    reported = _kernels_of_first_start(tmp_path / "home", "--compile-cache", str(location), model=model)
    assert reported["used"] > 0
    assert reported["compiled_by_engine"] == 0
    assert list((tmp_path / "home/cache/vllm_cli/imports").glob("*.code")), "fetched, or learned"


def test_a_builder_without_a_gpu_compiles_the_kernels_of_an_architecture(tmp_path):
    folder, home = tmp_path / "baked", tmp_path / "builder"
    variables = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    _bake(home, "--output", folder, "--gpu-arch", "9.0", variables=variables)
    reported = _kernels_of_first_start(tmp_path / "home", VCLI_BAKED=str(folder))
    assert reported["used"] > 0
    assert reported["compiled_by_engine"] == 0
