"""Real vLLM with its Rust frontend: the port has one owner at any time. Also drain, kills and signals."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate, needs_openssl
from tests.support.openai_client import RepeatingClients, StreamReader
from tests.support.peer_vllm import ENVIRONMENT
from tests.support.waiting import is_gone, wait_until
from tests.vllm_engine.vllm_server import VllmServer

_IN_PACKAGE = next(ENVIRONMENT.glob("lib/python3*/site-packages/vllm/vllm-rs"), None)
_NUM_REQUESTS = 200
_NUM_TOKENS = 200
_IN_ORDER = (0, 503, 200)

pytestmark = [
    pytest.mark.versions,
    pytest.mark.skipif(_IN_PACKAGE is None, reason="this vLLM has no Rust frontend"),
]


@pytest.fixture(scope="module")
def variables(workplace: Path) -> dict[str, str]:
    """Variables that name an executable copy of the program, because an unpacked wheel has none."""
    assert _IN_PACKAGE is not None
    program = workplace / "vllm-rs"
    shutil.copyfile(_IN_PACKAGE, program)
    program.chmod(0o755)
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(program)}


def _frontend(server: VllmServer) -> int:
    (process,) = [each for each in server.family() if "--listen-fd" in each.cmdline()]
    return process.pid


def _engine(server: VllmServer) -> int:
    return server.titled("EngineCore")[0].pid


def test_all_requests_after_readiness_are_answered(start_vllm, variables, expected_text):
    with start_vllm("ours", environment=variables) as server:
        with RepeatingClients(server.port, *["/health"] * 4) as clients:
            clients.wait_for_more(20, 503)
            server.wait_ready()
            texts = {server.generate() for _ in range(_NUM_REQUESTS)}
            clients.wait_for_more(_NUM_REQUESTS, 200)
        server.wait_logged("ready after")
        assert "vllm:" in server.text("/metrics")
        assert server.terminate() == 0
    assert texts == {expected_text}
    assert not clients.lost
    for statuses in clients.statuses:
        assert statuses == sorted(statuses, key=_IN_ORDER.index)
    assert "without preloading" not in server.log


def test_sigterm_finishes_streams_and_frees_the_port(start_vllm, variables):
    with start_vllm("ours", environment=variables) as server:
        server.wait_ready().wait_logged("ready after")
        streams = [StreamReader(server.url, _NUM_TOKENS) for _ in range(4)]
        server.family()
        os.kill(server.process.pid, signal.SIGTERM)
        wait_until(lambda: server.status("/health") == 0)
        ends = [stream.finish()[-1] for stream in streams]
        assert ends == [None] * 4
        assert server.process.wait(120) == 0


@pytest.mark.parametrize(
    ("find", "named"), [(_frontend, "RustFrontend"), (_engine, "EngineCore")], ids=["it", "engine"]
)
def test_a_killed_process_ends_the_server_with_a_digest(find, named, start_vllm, variables):
    with start_vllm("ours", environment=variables) as server:
        server.wait_ready().wait_logged("ready after")
        os.kill(find(server), signal.SIGKILL)
        assert server.process.wait(120) == 1
        server.wait_all_gone()
        assert named in server.log[server.log.rindex("Error: ") :]


def test_a_killed_launcher_leaves_nothing(start_vllm, variables):
    with start_vllm("ours", environment=variables) as server:
        server.wait_ready()
        frontend = _frontend(server)
        server.process.kill()
        wait_until(lambda: is_gone(frontend))
        server.process.wait()


def test_sigterm_during_the_start_ends_all(start_vllm, variables):
    with start_vllm("ours", environment=variables) as server:
        server.wait_logged("Launching Rust frontend")
        assert server.terminate() == -signal.SIGTERM


@needs_openssl
def test_readiness_is_known_with_tls(start_vllm, variables, tmp_path):
    with start_vllm("ours", *make_certificate(tmp_path, "server").flags, environment=variables) as server:
        server.wait_logged("ready after")
        assert server.terminate() == 0


def test_a_program_that_cannot_be_executed_is_told_in_one_line(start_vllm, variables, tmp_path):
    program = tmp_path / "vllm-rs"
    program.touch()
    with start_vllm("ours", environment={**variables, "VLLM_RUST_FRONTEND_PATH": str(program)}) as server:
        assert server.process.wait(120) == 3
        (line,) = [line for line in server.log.splitlines() if "Error" in line]
        assert f"chmod +x {program}" in line
