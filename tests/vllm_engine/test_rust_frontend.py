"""Real vLLM with its Rust frontend starts as with `vllm serve`."""

import shutil
from pathlib import Path

import pytest

from tests.support.peer_vllm import ENVIRONMENT

_IN_PACKAGE = next(ENVIRONMENT.glob("lib/python3*/site-packages/vllm/vllm-rs"), None)

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


def test_the_start_is_plain_with_one_line(start_vllm, variables, expected_text):
    with start_vllm("ours", environment=variables) as server:
        server.wait_ready()
        assert server.generate() == expected_text
        assert "vllm:" in server.text("/metrics")
        assert server.terminate() == 0
    (line,) = [line for line in server.log.splitlines() if "plain start: " in line]
    assert "Rust frontend" in line
