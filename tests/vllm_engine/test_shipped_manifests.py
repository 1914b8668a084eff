"""The manifests for vLLM with real vLLM: the pod on one node serves, all of them pass the preflight."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.deploy.container_root import ContainerRoot
from tests.deploy.shipped import STARTS, STARTS_OF_VLLM
from tests.peer_vllm import PYTHON, ROOT
from tests.ports import free_port
from tests.startup.vllm.fake_start import short_folder
from tests.vllm_engine.vllm_server import VllmServer


def test_the_pod_on_one_node_serves(small_model, two_ranks):
    with short_folder() as folder:
        root = ContainerRoot(folder / "root", small_model)
        [_, _, model, *words], variables = root.prepare(STARTS["vllm-deployment"])
        with VllmServer("ours", Path(model), *words, folder=root.home, environment=variables | two_ranks) as server:
            assert server.wait_ready().generate()
            assert len(server.titled("Worker")) == 2
            assert server.end_with(signal.SIGTERM) == 0


@pytest.mark.parametrize("name", STARTS_OF_VLLM)
def test_the_preflight_accepts_a_pod(name, small_model):
    with short_folder() as folder:
        root = ContainerRoot(folder / "root", small_model, num_attention_heads=8)
        words, variables = root.prepare(STARTS[name])
        done = subprocess.run(
            [PYTHON, "-m", "vllm_cli", "serve", *words, "--port", str(free_port()), "--preflight-only"],
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
