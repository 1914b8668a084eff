"""Fixtures: model folders of real files, which tests damage, and a function that runs the preflight."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

from base.machine.memory import MemoryState
from server.terms.config import EngineConfig, RendererConfig
from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from startup.session.preflight.report import PreflightReport
from startup.settings.config import ModelConfig, StartupConfig
from tests.server.server_config import server_config

GIB = 1 << 30
ROOMY = MemoryState(64 * GIB, 64 * GIB)

Tensors = dict[str, tuple[str, list[int], int]]
"""Name of a tensor -> its type, shape and number of bytes."""


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Writes a file of safetensors. It is valid if types, shapes and sizes agree."""
    position = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(range(256)) * (position // 256) + bytes(position % 256)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writable cache folder, independent of the machine's."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))


class ModelFolder:
    """A folder with the real model's configuration, a small tokenizer, and three small shards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = [path / f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
        self.index = path / "model.safetensors.index.json"
        for i, shard in enumerate(self.shards):
            write_safetensors(shard, {f"layer{i}.a": ("BF16", [64, 4], 512), f"layer{i}.b": ("F32", [16], 64)})
        self.write_index({f"layer{i}.{x}": shard.name for i, shard in enumerate(self.shards) for x in "ab"})

    def write_index(self, shard_of: dict[str, str]) -> None:
        self.index.write_text(json.dumps({"metadata": {"total_size": 1728}, "weight_map": shard_of}))


@pytest.fixture
def folder(tmp_path: Path, model_path: Path) -> ModelFolder:
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        copyfile(model_path / name, path / name)
    (path / "tokenizer.json").write_text("{}")
    return ModelFolder(path)


@pytest.fixture
def make_config() -> Callable[..., StartupConfig]:
    """Makes a configuration. Each argument goes to the part that has a field with its name."""

    def make(model: Path | str | None = None, **given: Any) -> StartupConfig:
        model = str(model) if model is not None else None
        parts = [
            cls(**(always | {name: given.pop(name) for name in list(given) if name in cls.__dataclass_fields__}))
            for cls, always in ((ModelConfig, {"model": model}), (EngineConfig, {}), (RendererConfig, {}))
        ]
        model_config, engine, renderer = parts
        return StartupConfig(
            start_method="spawn",
            engine_ready_timeout_s=60,
            logging_level="INFO",
            model=model_config,
            engine=engine,
            renderer=renderer,
            server=server_config(**({"port": 0} | given)),
        )

    return make


@pytest.fixture
def preflight(make_config: Callable[..., StartupConfig]) -> Callable[..., PreflightReport]:
    """Runs all checks. Arguments with names of PreflightOptions are options, others are configuration."""

    def run(model: Path | str | None = None, **given: Any) -> PreflightReport:
        options = {"memory": ROOMY} | {
            name: given.pop(name) for name in list(given) if name in PreflightOptions.__dataclass_fields__
        }
        return run_preflight(make_config(model, **given), options=PreflightOptions(**options))

    return run
