"""What is recorded of vLLM's parser and registries is what vLLM accepts."""

from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.peer_vllm import ask_vllm

pytestmark = pytest.mark.versions

VALUES: Final = (
    "1", "0", "-1", "1.5", "8k", "8K", "1.5k", "1.5K", "auto", "AUTO", "x", "", "None", "{}", '{"a": 1}', "[1]", "[]",
    "true", "1_0", " 1", "nan", "1e3", '{"a"', "80g", "-2", "null", '"text"', "a=b", "Half", "half", "deep-gemm",
    "tcp://10.0.0.1:80",
)  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).parent / "preflight" / "vllm_facts.py"
    found: dict[str, Any] = ask_vllm(script, {"values": VALUES}, tmp_path_factory.mktemp("facts"), timeout_s=1200)
    return found


def test_each_option_is_recorded_and_no_value_is_refused_that_vllm_accepts(real):
    assert len(real["flags"]) > 250
    assert [flag["option"] for flag in real["flags"] if not flag["is_same"]] == []
    assert [
        flag for flag in real["flags"] if set(flag["vllm"]) - set(flag["preflight"]) and flag["kind"] != "switch"
    ] == []


def test_of_plain_values_nothing_else_passes(real):
    unchecked = ("unknown", "object", "switch")
    plain = [flag for flag in real["flags"] if flag["kind"] not in unchecked]
    others = [flag["option"] for flag in plain if flag["vllm"] != flag["preflight"]]
    assert others == [option for option in others if option == "--mm-processor-device"]
    assert len({flag["option"] for flag in real["flags"] if flag["kind"] == "unknown"}) <= 8


def test_registered_names(real):
    names = real["facts"][1]
    examples = {
        "--tool-call-parser": "hermes", "--reasoning-parser": "qwen3", "--quantization": "fp8",
        "--load-format": "dummy", "--attention-backend": "FLASH_ATTN", "architectures": "LlamaForCausalLM",
    }  # fmt: skip
    assert [flag for flag, name in examples.items() if name not in names.get(flag, ())] == []
