"""`vllm-cli run` chats on a server that already runs, or else on one that ends with the chat."""

from pathlib import Path
from shutil import copytree

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from vllm_cli.client.running_servers import find_servers

pytestmark = pytest.mark.thorough

QUICK = ("--quick", "Hi", "--temperature", "0")


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> str:
    """A model that no server of another test has."""
    return str(copytree(tiny_llama, tmp_path / "model"))


def _servers_of(model: str) -> list[int]:
    return [server.pid for server in find_servers(with_state=False) if server.model == model]


def test_without_a_server_one_is_started_for_the_chat(model):
    done = run_cli("run", model, *QUICK, "--max-model-len", "64", "--port", "8000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert _servers_of(model) == []


def test_a_running_server_answers_and_still_runs(model):
    with ServerProcess([model, "--max-model-len", "64"]) as server:
        done = run_cli("run", model, *QUICK)
        assert (done.returncode, done.stderr) == (0, ""), "a start would show its phases"
        assert done.stdout == run_cli("chat", "--url", server.url, *QUICK).stdout
        assert _servers_of(model) == [server.process.pid]


def test_a_start_that_fails_says_why_also_beside_the_default_model(tmp_path):
    with ServerProcess([]):
        done = run_cli("run", f"--model={tmp_path / 'nothing'}", "--quick", "Hi")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing is neither a folder nor a name on the Hugging Face hub" in done.stderr
