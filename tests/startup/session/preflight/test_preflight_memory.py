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


_ROOMY = MemoryState(8 << 30, 16 << 30)
_LITTLE = MemoryState(300 * MIB, 400 * MIB)
_FOR_1000_TOKENS = MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB)
_LONG = {"max_model_len": 9000, "allow_long_max_model_len": True}


@pytest.mark.parametrize(
    ("memory", "options", "severity", "check", "text"),
    [
        (
            _LITTLE,
            {},
            *("error", "memory"),
            "256.6 MiB for the weights in bfloat16 … 180.0 MiB for the KV cache of one sequence of 8192 tokens … 300.0 "
            "MiB of the machine's 400.0 MiB are available … take a smaller or quantized model or free memory",
        ),
        (
            _LITTLE._replace(is_cgroup=True),
            {},
            *("error", "memory"),
            "of the container's 400.0 MiB are available … raise the container's memory limit",
        ),
        (
            MemoryState(600 * MIB, 800 * MIB),
            {"dtype": "float32"},
            *("error", "memory"),
            "513.1 MiB for the weights in float32 … --dtype bfloat16",
        ),
        (_FOR_1000_TOKENS, {"max_model_len": 4096}, "error", "memory", "lower --max-model-len to at most 1"),
        (_FOR_1000_TOKENS, {}, "warning", "memory", ""),
        (_ROOMY, _LONG, "info", "memory", ""),
        (
            _FOR_1000_TOKENS._replace(available_bytes=(500 + 258) * MIB + 8192 * KV_BYTES),
            {},
            *("info", "memory"),
            "936.6 MiB are needed (256.6 MiB for the weights in bfloat16,  … ), 938.0 MiB of the machine's 1.0",
        ),
        (_FOR_1000_TOKENS, _LONG, "error", "memory", "KV cache of one sequence of 9000 tokens"),
        (
            _ROOMY,
            {"max_model_len": 100_000},
            *("error", "max_model_len"),
            "--max-model-len 100000 is more than the model's own limit of 8192 tokens",
        ),
        (
            _ROOMY,
            {"max_model_len": 2048, "kv_cache_memory_bytes": 100 * KV_BYTES},
            *("error", "kv_cache"),
            f"give {2048 * KV_BYTES} or more, or lower --max-model-len to 100",
        ),
        (MemoryState(2048 * MIB, 4096 * MIB), {"kv_cache_memory_bytes": 8 << 30}, "warning", "kv_cache", "Give less"),
    ],
)
def test_a_model_that_does_not_fit_is_told_with_the_numbers(
    model_path, preflight, memory, options, severity, check, text
):
    found, message = message_of(preflight(model_path, memory=memory, **options), check)
    assert found == severity
    assert [part for part in text.split(" … ") if part not in message] == [], message


def test_with_a_gpu_the_machines_memory_is_not_checked(model_path, preflight, monkeypatch):
    monkeypatch.setattr("startup.session.preflight.memory_fit.expects_gpu", lambda: True)
    assert preflight(model_path, memory=_LITTLE).findings == ()


@pytest.mark.parametrize(
    ("memory", "size", "most"),
    [
        (_ROOMY, None, 8192),
        (_FOR_1000_TOKENS, None, 1000),
        (_ROOMY, 700 * KV_BYTES, 700),
    ],
    ids=["model", "memory", "cache_size"],
)
def test_a_length_beyond_every_limit_is_one_error_with_the_lowest(memory, size, most, model_path, preflight):
    report = preflight(model_path, max_model_len=1_000_000_000, memory=memory, kv_cache_memory_bytes=size)
    (finding,) = report.errors
    (advised,) = re.findall(r"give at most (\d+)", finding.message)
    assert most <= int(advised) <= most + 100  # the weights are a little smaller than 258 MiB
    assert preflight(model_path, max_model_len=int(advised), memory=memory, kv_cache_memory_bytes=size).errors == ()


_SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 1 << 20}


@pytest.mark.parametrize(("config", "is_known"), [({"text_config": _SHAPE}, True), ({}, False)])
def test_the_shape_of_a_multimodal_model_is_read_and_without_a_shape_only_weights_count(
    config, is_known, folder, preflight
):
    (folder.path / "config.json").write_text(json.dumps({"model_type": "gemma3", **config}))
    _, message = message_of(preflight(folder.path, memory=MemoryState(500 * MIB, 512 * MIB)), "memory")
    assert ("512.0 MiB for the KV cache of one sequence of 1048576 tokens" in message) == is_known
    assert ("KV cache" in message) == is_known


def test_an_encoder_passes_every_check(tmp_path, preflight):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    (finding,) = preflight(tmp_path, memory=MemoryState(600 * MIB, 800 * MIB)).findings
    assert (finding.check, finding.severity) == ("memory", "info")


@pytest.mark.parametrize(("options", "has_cache"), [({}, True), ({"runner": "pooling"}, False)])
def test_a_language_model_that_pools_needs_no_cache(model_path, options, has_cache):
    shape = read_model_shape(read_checkpoint(model_path), EngineConfig(**options))  # type: ignore[arg-type]
    assert bool(shape.kv_bytes_per_token) is has_cache
