"""Each start of `starts.yaml` has the findings that stand there. Real vLLM is asked about many of them."""

import json
from pathlib import Path

import pytest

from envs.environment import overlaid
from startup.session.preflight.all_checks import PreflightOptions
from startup.vllm_arguments.preflight.all_checks import run_preflight
from tests.startup.session.preflight.conftest import write_safetensors
from tests.startup.vllm_arguments.preflight.conftest import CheckStart
from tests.support.certificates import needs_openssl
from tests.vllm_engine.preflight import start_folders
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.written_starts import WrittenStart, written_starts

_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
}
_OF_THIS_MACHINE = ("compiler", "shm", "nofile", "memory", "cache", "hub")
"""Checks whose warnings depend on the machine that runs the tests."""
_OPTIONS = {"plugin": {"has_plugin": True}, "first": {"is_first": True}, "newer": {"version": "0.99.0+cpu"}}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartFolders:
    """Files and folders of starts, with a small model in place of the real one."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(_CONFIG))
    (model / "tokenizer.json").write_text("{}")
    write_safetensors(model / "model.safetensors", {"weight": ("F32", [4], 16)})
    monkeypatch.setattr(start_folders, "MODEL", model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return StartFolders(tmp_path)


def _change(folder: Path, given: WrittenStart) -> None:
    model = folder / "model"
    if given.config:
        config = json.loads((model / "config.json").read_text()) | given.config
        known = {name: value for name, value in config.items() if value is not None}
        (model / "config.json").write_text(json.dumps(known))
    for name, content in given.files.items():
        if content is None:
            (model / name).unlink()
        else:
            (model / name).write_text(content)
    for name, content in given.beside.items():
        (folder / name).write_text(content)


@needs_openssl
@pytest.mark.parametrize("given", [*written_starts()], ids=lambda given: given.text)
def test_a_start_has_its_findings(given: WrittenStart, folders: StartFolders, start: CheckStart, monkeypatch):
    folder = folders.path("folder")
    _change(folder, given)
    arguments = [folders.fill(argument) for argument in given.arguments]
    variables = {name: folders.fill(value) for name, value in given.variables.items()}
    for path in filter(None, [variables.pop("PYTHONPATH", None)]):
        monkeypatch.syspath_prepend(path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    checked = start(*arguments, **_OPTIONS.get(given.stage, {}))
    with overlaid(variables):
        report = run_preflight(checked.vllm, checked.line, PreflightOptions(is_listening=True))
    found = [each for each in report.findings if each.severity == "error" or each.check not in _OF_THIS_MACHINE]
    found = [each for each in found if each.severity != "unchecked"]  # `test_unchecked.py` is about these
    if given.stage == "done":
        found = [each for each in found if each.severity == "error" and not _is_of_small_parser(each.message)]
    assert [each.severity for each in found] == [severity for severity, _ in given.parts], found
    assert [part for each, (_, part) in zip(found, given.parts, strict=True) if part not in each.message] == []


def _is_of_small_parser(message: str) -> bool:
    """Whether the small parser of the tests lacks the flag, the field or the level that vLLM has."""
    return any(part in message for part in ("vLLM has no flag", "has no field 'pass_config'", "level 'trace'"))
