"""Weights, one sequence and the program must fit into memory. A fault has numbers and advice."""

import json
import re

import pytest

from base.machine.memory import MemoryState
from server.terms.config import EngineConfig
from startup.session.preflight.checkpoint import read_checkpoint
from startup.session.preflight.memory_fit import read_model_shape
from startup.session.preflight.report import PreflightReport
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

MIB = 1 << 20
LAYERS, KV_HEADS, HEAD_DIM = 30, 3, 64
KV_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
"""Bytes per token of SmolLM2-135M in bfloat16."""


def message_of(report: PreflightReport, check: str) -> tuple[str, str]:
    (finding,) = [f for f in report.findings if f.check == check]
    return finding.severity, finding.message


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("startup.imports.torch_environment._GPU_DEVICES", ())


def test_weights_that_do_not_fit_are_reported_with_the_numbers(model_path, preflight):
    severity, message = message_of(preflight(model_path, memory=MemoryState(300 * MIB, 400 * MIB)), "memory")
    assert severity == "error"
    assert "256.6 MiB for the weights in bfloat16" in message
    assert "180.0 MiB for the KV cache of one sequence of 8192 tokens" in message
    assert "300.0 MiB of the machine's 400.0 MiB are available" in message
    assert "take a smaller or quantized model or free memory" in message


def test_container_limit_is_named_as_such(model_path, preflight):
    _, message = message_of(preflight(model_path, memory=MemoryState(300 * MIB, 400 * MIB, is_cgroup=True)), "memory")
    assert "of the container's 400.0 MiB are available" in message
    assert "raise the container's memory limit" in message


def test_float32_doubles_the_need_and_bfloat16_is_advised(model_path, preflight):
    report = preflight(model_path, dtype="float32", memory=MemoryState(600 * MIB, 800 * MIB))
    _, message = message_of(report, "memory")
    assert "513.1 MiB for the weights in float32" in message
    assert "--dtype bfloat16" in message


def test_a_configured_length_that_does_not_fit_is_an_error(model_path, preflight):
    memory = MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB)
    severity, message = message_of(preflight(model_path, max_model_len=4096, memory=memory), "memory")
    assert severity == "error"
    assert "lower --max-model-len to at most 1" in message


def test_a_default_length_that_does_not_fit_is_a_warning(model_path, preflight):
    memory = MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB)
    assert message_of(preflight(model_path, memory=memory), "memory")[0] == "warning"


def test_sufficient_memory_is_told_with_the_numbers(model_path, preflight):
    memory = MemoryState((500 + 258) * MIB + 8192 * KV_BYTES, 1024 * MIB)
    severity, message = message_of(preflight(model_path, memory=memory), "memory")
    assert severity == "info"
    assert message.startswith("936.6 MiB are needed (256.6 MiB for the weights in bfloat16, ")
    assert message.endswith("), 938.0 MiB of the machine's 1.0 GiB are available")


def test_with_a_gpu_the_machines_memory_is_not_checked(model_path, preflight, monkeypatch):
    monkeypatch.setattr("startup.session.preflight.memory_fit.expects_gpu", lambda: True)
    assert preflight(model_path, memory=MemoryState(300 * MIB, 400 * MIB)).findings == ()


def test_a_length_beyond_the_models_own_is_an_error(model_path, preflight):
    severity, message = message_of(preflight(model_path, max_model_len=100_000), "max_model_len")
    assert severity == "error"
    assert "--max-model-len 100000 is more than the model's own limit of 8192 tokens" in message


def test_a_length_beyond_the_models_own_that_is_allowed_is_left_to_the_engine(model_path, preflight):
    memory = MemoryState(8 << 30, 16 << 30)
    report = preflight(model_path, max_model_len=9000, allow_long_max_model_len=True, memory=memory)
    assert message_of(report, "memory")[0] == "info"
    memory = MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB)
    report = preflight(model_path, max_model_len=9000, allow_long_max_model_len=True, memory=memory)
    assert "KV cache of one sequence of 9000 tokens" in message_of(report, "memory")[1]


@pytest.mark.parametrize(
    ("memory", "size", "most"),
    [
        (MemoryState(8 << 30, 16 << 30), None, 8192),
        (MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB), None, 1000),
        (MemoryState(8 << 30, 16 << 30), 700 * KV_BYTES, 700),
    ],
    ids=["model", "memory", "cache_size"],
)
def test_a_length_beyond_every_limit_is_one_error_with_the_lowest(memory, size, most, model_path, preflight):
    report = preflight(model_path, max_model_len=1_000_000_000, memory=memory, kv_cache_memory_bytes=size)
    (finding,) = report.errors
    (advised,) = re.findall(r"give at most (\d+)", finding.message)
    assert most <= int(advised) <= most + 100  # the weights are a little smaller than 258 MiB
    assert preflight(model_path, max_model_len=int(advised), memory=memory, kv_cache_memory_bytes=size).errors == ()


def test_a_kv_cache_too_small_for_one_sequence_is_an_error(model_path, preflight):
    size = 100 * KV_BYTES
    _, message = message_of(preflight(model_path, max_model_len=2048, kv_cache_memory_bytes=size), "kv_cache")
    assert f"give {2048 * KV_BYTES} or more, or lower --max-model-len to 100" in message


def test_a_kv_cache_larger_than_memory_is_a_warning(model_path, preflight):
    memory = MemoryState(2048 * MIB, 4096 * MIB)
    severity, message = message_of(preflight(model_path, memory=memory, kv_cache_memory_bytes=8 << 30), "kv_cache")
    assert severity == "warning"
    assert "Give less" in message


def test_the_shape_of_a_multimodal_model_is_read(folder, preflight):
    text = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 1 << 20}
    (folder.path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    _, message = message_of(preflight(folder.path, memory=MemoryState(500 * MIB, 512 * MIB)), "memory")
    assert "512.0 MiB for the KV cache of one sequence of 1048576 tokens" in message


def test_a_config_without_a_shape_checks_only_the_weights(folder, preflight):
    (folder.path / "config.json").write_text('{"model_type": "unusual"}')
    _, message = message_of(preflight(folder.path, memory=MemoryState(400 * MIB, 512 * MIB)), "memory")
    assert "KV cache" not in message


def test_an_encoder_passes_every_check(tmp_path, preflight):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    (finding,) = preflight(tmp_path, memory=MemoryState(600 * MIB, 800 * MIB)).findings
    assert (finding.check, finding.severity) == ("memory", "info")


@pytest.mark.parametrize(("options", "has_cache"), [({}, True), ({"runner": "pooling"}, False)])
def test_a_language_model_that_pools_needs_no_cache(model_path, options, has_cache):
    shape = read_model_shape(read_checkpoint(model_path), EngineConfig(**options))  # type: ignore[arg-type]
    assert bool(shape.kv_bytes_per_token) is has_cache
