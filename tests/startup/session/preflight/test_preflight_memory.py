"""Weights, one sequence and the program must fit into memory. A fault has numbers and advice."""

import json
import re
from pathlib import Path

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


_FOR_1000_TOKENS = MemoryState((500 + 258) * MIB + 1000 * KV_BYTES, 1024 * MIB)
_MEMORY = {
    "roomy": MemoryState(8 << 30, 16 << 30),
    "little": MemoryState(300 * MIB, 400 * MIB),
    "little container": MemoryState(300 * MIB, 400 * MIB, is_cgroup=True),
    "600 MiB": MemoryState(600 * MIB, 800 * MIB),
    "2048 MiB": MemoryState(2048 * MIB, 4096 * MIB),
    "1000 tokens": _FOR_1000_TOKENS,
    "8192 tokens": _FOR_1000_TOKENS._replace(available_bytes=(500 + 258) * MIB + 8192 * KV_BYTES),
}


@pytest.mark.parametrize("fit", Path(__file__).with_name("memory_fits.txt").read_text().splitlines())
def test_a_model_that_does_not_fit_is_told_with_the_numbers(model_path, preflight, fit):
    """Each line has the memory, options, and the finding: severity, check, and texts of its message."""
    arguments, expected = fit.split(" => ")
    finding, _, texts = expected.partition(":")
    memory = max((name for name in _MEMORY if arguments.startswith(name)), key=len)
    options = dict(argument.split("=") for argument in arguments.removeprefix(memory).split())
    options = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    severity, check = finding.split()
    found, message = message_of(preflight(model_path, memory=_MEMORY[memory], **options), check)
    assert found == severity
    assert [text for text in texts.strip().split(" … ") if text not in message] == [], message


def test_with_a_gpu_the_machines_memory_is_not_checked(model_path, preflight, monkeypatch):
    monkeypatch.setattr("startup.session.preflight.memory_fit.expects_gpu", lambda: True)
    (finding,) = preflight(model_path, memory=_MEMORY["little"]).findings
    assert (finding.severity, finding.check) == ("unchecked", "memory")


@pytest.mark.parametrize(
    ("memory", "size", "most"),
    [
        (_MEMORY["roomy"], None, 8192),
        (_FOR_1000_TOKENS, None, 1000),
        (_MEMORY["roomy"], 700 * KV_BYTES, 700),
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
