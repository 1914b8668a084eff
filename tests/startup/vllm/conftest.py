"""Fixtures of tests with a fake vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folders import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the files of a start. Its path is short enough for Unix sockets."""
    with short_folder() as path:
        yield path


@pytest.fixture
def model(folder: Path) -> str:
    """The path of a folder with the files of a model, which pass the preflight."""
    path = folder / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["FakeForCausalLM"], "model_type": "llama"}))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (path / "tokenizer.json").write_text("{}")
    return str(path)
