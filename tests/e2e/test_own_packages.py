"""A user's `server.py`, `startup.py` and `envs.py` are never imported in place of this program's packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess

_NAMES = ("server", "startup", "envs")


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder with modules of our names, each of which leaves a file when it is imported."""
    folder = tmp_path / "decoys"
    folder.mkdir()
    for name in _NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / name)!r}, 'w').close()\nraise SystemExit('{name}')\n")
    return folder


def _imported(folder: Path) -> list[str]:
    return [name for name in _NAMES if (folder / name).exists()]


@pytest.mark.smoke
@pytest.mark.parametrize(
    "command",
    [[str(Path(sys.executable).with_name("vllm-cli"))], [sys.executable, "-m", "vllm_cli"]],
    ids=["script", "module"],
)
def test_command_line(command, decoys):
    done = subprocess.run(
        [*command, "serve", "--help"],
        env={"PYTHONPATH": "."},
        cwd=decoys,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, _imported(decoys)) == (0, []), done.stderr
    assert "Serve MODEL" in done.stdout


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_processes_of_a_server(method, decoys, tiny_llama, monkeypatch):
    monkeypatch.chdir(decoys)
    environment = {"PYTHONPATH": ".", "VLLM_WORKER_MULTIPROC_METHOD": method}
    with ServerProcess([str(tiny_llama)], environment=environment):
        assert _imported(decoys) == []
