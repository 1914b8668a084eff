"""The start method is set once; a mismatch is logged, never raised."""

import subprocess
import sys

import pytest

from envs.registry import START_METHODS


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("method", START_METHODS)
def test_method_is_in_force_afterwards(method):
    out = _run(
        "import multiprocessing\n"
        "from startup.engine.process import use_start_method\n"
        f"context = use_start_method({method!r})\n"
        "print(multiprocessing.get_start_method(), context.get_start_method())\n"
    ).stdout
    assert out.split() == [method, method]


def test_method_that_was_set_before_stays_and_is_logged():
    run = _run(
        "import logging, multiprocessing\n"
        "logging.basicConfig()\n"
        "multiprocessing.set_start_method('spawn')\n"
        "from startup.engine.process import use_start_method\n"
        "context = use_start_method('forkserver')\n"
        "print(multiprocessing.get_start_method(), context.get_start_method())\n"
    )
    assert run.stdout.split() == ["spawn", "forkserver"]
    assert "was already 'spawn'" in run.stderr


@pytest.mark.thorough
def test_fork_is_rejected_once_cuda_is_initialised():
    code = (
        "import torch\n"
        "from startup.errors import StartupError\n"
        "from startup.engine.process import use_start_method\n"
        "torch.cuda._initialized = True  # what the first use of a GPU sets\n"
        "use_start_method('spawn')\n"
        "try:\n"
        "    use_start_method('fork')\n"
        "except StartupError as err:\n"
        "    print(err)\n"
    )
    assert "cannot be used once CUDA is initialised" in _run(code).stdout
