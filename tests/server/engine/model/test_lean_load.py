"""A model that fails to load with lean imports is loaded again with all of torch."""

from pathlib import Path

import pytest

from base.errors import EngineStartError
from server.config import EngineConfig, ModelFiles
from server.engine import build, process
from server.engine.phases import Phases
from tests.server.engine.tiny_models import PACKED, build_model


class _Imports:
    """Lean imports until `restore`."""

    def __init__(self, *, is_lean: bool) -> None:
        self._is_lean = is_lean

    @property
    def is_whole(self) -> bool:
        return not self._is_lean

    def end(self) -> None:
        """Nothing to do."""

    def restore(self) -> bool:
        was_lean, self._is_lean = self._is_lean, False
        return was_lean


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    build_model("llama", PACKED["llama"]).save_pretrained(tmp_path)
    return ModelFiles(tmp_path, tmp_path)


def test_a_load_that_fails_with_lean_imports_is_repeated_with_all_modules(files, monkeypatch):
    imports = _Imports(is_lean=True)
    load = build.load_model

    def load_only_with_all_modules(*arguments: object) -> object:
        if not imports.is_whole:
            raise EngineStartError("cannot load the weights: NotImplementedError: aten::erfinv on the meta device")
        return load(*arguments)

    monkeypatch.setattr(build, "load_model", load_only_with_all_modules)
    _, info = process._build(files, EngineConfig(max_num_seqs=1), Phases(), imports, wake=lambda: None)
    assert info.model_type == "llama"


def test_a_faulty_model_is_reported_after_the_second_load(files):
    (files.path / "config.json").write_text("{")
    imports = _Imports(is_lean=True)
    with pytest.raises(EngineStartError, match="config"):
        process._build(files, EngineConfig(max_num_seqs=1), Phases(), imports, wake=lambda: None)
    assert imports.is_whole


def test_a_load_with_all_modules_is_not_repeated(files, monkeypatch):
    tries: list[object] = []

    def fail(*arguments: object) -> object:
        tries.append(arguments)
        raise EngineStartError("no")

    monkeypatch.setattr(build, "load_model", fail)
    with pytest.raises(EngineStartError):
        process._build(files, EngineConfig(max_num_seqs=1), Phases(), _Imports(is_lean=False), wake=lambda: None)
    assert len(tries) == 1
