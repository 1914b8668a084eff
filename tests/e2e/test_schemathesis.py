"""schemathesis generates requests from /openapi.json; the server answers none with 5xx.

schemathesis is installed in its own environment: its pytest plugins would affect every other test.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess
from tests.llamas import save_tiny_llama
from tests.server.engine.pooling.tiny_poolers import save_pooler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REQUIREMENT = "schemathesis>=4,<5"
SETTINGS = ("--served-model-name", "tiny", "--disable-uvicorn-access-log")
FEW_TOKENS = ("--max-model-len", "128", "--override-generation-config.max_new_tokens", "4")


@pytest.fixture(scope="module")
def schemathesis(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the command, which is installed if it is missing."""
    if found := shutil.which("schemathesis"):
        return found
    folder = tmp_path_factory.mktemp("schemathesis")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", REQUIREMENT], capture_output=True)
    if pip.returncode:
        pytest.skip(f"schemathesis cannot be installed: {pip.stderr.decode()[-500:]}")
    return str(folder / "bin/schemathesis")


@pytest.fixture(params=["text", "pooling"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    if request.param == "text":
        arguments = [str(save_tiny_llama(tmp_path)), *FEW_TOKENS]
    else:
        save_pooler(tmp_path, "bert")
        arguments = [str(tmp_path), "--runner", "pooling"]
    with ServerProcess([*arguments, *SETTINGS]) as running:
        yield running


def test_no_request_made_from_the_schema_is_a_server_error(
    schemathesis: str, server: ServerProcess, tmp_path: Path
) -> None:
    words = ["run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"]
    words += ["--phases", "examples,coverage,fuzzing"]
    options = ["--max-examples", "100", "--workers", "2", "--suppress-health-check", "all", "--request-timeout", "120"]
    run = subprocess.run([schemathesis, *words, *options], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-5000:]
    print(run.stdout[-1500:])
    assert "Traceback" not in server.log
    assert server.health() == 200
