"""Real vLLM with its Rust frontend: the port has one owner at any time."""

import shutil
from pathlib import Path

import pytest

from tests.support.openai_client import RepeatingClients
from tests.support.peer_vllm import ENVIRONMENT

_IN_PACKAGE = next(ENVIRONMENT.glob("lib/python3*/site-packages/vllm/vllm-rs"), None)
_NUM_REQUESTS = 200
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
