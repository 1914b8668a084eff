"""Faults of model and tokenizer folders that vLLM itself reads. All other models are left to vLLM."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from base.machine.memory import MemoryState
from startup.arguments.serve_command import parse_start
from startup.files.model.model_place import find_place
from startup.files.model.wanted_files import WantedFiles
from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from startup.session.preflight.model_places import choice_findings
from startup.session.preflight.report import Finding
from startup.settings.config import StartupConfig
from startup.vllm_arguments.preflight.model import ModelOnDisk
from tests.startup.session.preflight.conftest import write_safetensors
from tests.startup.vllm_arguments.preflight.conftest import CheckStart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model without faults."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", {"weight": ("F32", [4], 16)})
    return path


def _findings(start: CheckStart, *arguments: object, **options: Any) -> list[Finding]:
    return list(ModelOnDisk(start(*map(str, arguments), **options)).findings())


def _errors(start: CheckStart, *arguments: object, **options: Any) -> list[str]:
    return [finding.message for finding in _findings(start, *arguments, **options) if finding.severity == "error"]


def _errors_of_both(start: CheckStart, model: object) -> list[list[str]]:
    """The errors of a start of the embedded engine and of vLLM."""
    config = parse_start([str(model), "--engine=embedded"], is_quiet=True)
    assert isinstance(config, StartupConfig)
    report = run_preflight(config, options=PreflightOptions(is_listening=True, memory=MemoryState(1 << 40, 1 << 40)))
    return [[finding.message for finding in report.errors], _errors(start, model)]


@pytest.mark.parametrize("place", ["folder", "snapshot"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "consolidated.safetensors", "model.safetensors.index.json"],
)
def test_a_link_to_nowhere_is_named_with_its_target_before_the_start(name, place, start, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if place == "snapshot":
        (tmp_path / "hub" / "models--team--model" / "snapshots").mkdir(parents=True)
        folder = folder.rename(tmp_path / "hub" / "models--team--model" / "snapshots" / "main")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../blobs/0123")
    (folder / "notes.txt").symlink_to("gone")
    wanted = f"{folder / name} is a link to {folder.parent.parent / 'blobs' / '0123'}, which does not exist: copy with "
    errors = _errors_of_both(start, "team/model" if place == "snapshot" else folder)
    counts = [sum(wanted in message for message in messages) for messages in errors]
    assert counts == [name != "consolidated.safetensors", 1], errors  # which only vLLM reads


@pytest.mark.parametrize("name", ["m", "team/model"])
def test_a_model_that_is_a_link_to_nowhere_is_no_name_on_the_hub(name, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "team").mkdir()
    (tmp_path / name).symlink_to("/gone")
    for messages in _errors_of_both(start, name):
        assert [f"MODEL {name} is a link to /gone, which does not exist" in message for message in messages] == [True]


def test_a_lone_file_that_only_looks_like_a_model_is_refused(start, tmp_path):
    file = tmp_path / "m" / "._model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"\0\5\x16\7")
    (file.parent / "config.json").write_text('{"model_type": "llama"}')
    text = "file: it has 4 bytes and begins with b'\\x00\\x05\\x16\\x07'. Copy it again"
    for messages in _errors_of_both(start, tmp_path / "m"):
        assert any(str(file) in message and text in message for message in messages), messages


@pytest.mark.parametrize(
    ("place", "near"), [("above", "above/model"), ("model/sub", "model"), ("model/config.json", "model"), ("", "model")]
)
def test_a_place_that_is_nearly_right_names_the_model_s_folder(place, near, start, folder, tmp_path):
    (folder / "sub").mkdir()
    if place == "above":
        folder = folder.rename(tmp_path / "hub")
        (tmp_path / "above").mkdir()
        folder.rename(tmp_path / "above" / "model")
    for messages in _errors_of_both(start, tmp_path / place)[: 1 if place.endswith(".json") else 2]:
        assert any(f". There is config.json in {tmp_path / near}" in message for message in messages), messages


def test_vllm_s_other_weights_are_checked_too(start, folder):
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    assert _errors(start, folder) == []
    (folder / "other.safetensors").touch()
    (message,) = _errors(start, folder)
    assert message.startswith(f"{folder / 'other.safetensors'} is no safetensors file: it has 0 bytes")


@pytest.mark.parametrize("form", ["file", "folder", "repo/name-GGUF:UD-Q4_K_XL"])
def test_a_gguf_model_is_left_to_vllm(start, tmp_path, form):
    """Some of its versions read GGUF, others need a plugin."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.gguf").write_bytes(b"GGUF")
    name = {"file": tmp_path / "m" / "a.gguf", "folder": tmp_path / "m"}.get(form, form)
    assert _errors(start, name) == []


def test_offline_without_any_file(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (message,) = _errors(start, "someone/model")
    assert "HF_HUB_OFFLINE forbids the download" in message
    (tmp_path / "hub" / "models--someone--model" / "snapshots" / "main").mkdir(parents=True)
    messages = _errors(start, "someone/model")
    assert not any("HF_HUB_OFFLINE" in message for message in messages)
    assert any("has no config.json" in message for message in messages)


def test_offline_with_the_weights_alone_in_the_download_folder(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models--someone--model" / "snapshots" / "main").mkdir(parents=True)
    assert _errors(start, "someone/model", "--download-dir", tmp_path) == []


def test_shards_of_the_index(start, folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert _errors(start, folder) == []  # without an index vLLM reads what there is
    shards = {"weight": "model-00001-of-00002.safetensors", "other": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (message,) = _errors(start, folder)
    assert "lacks 1 of 2 shards" in message


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["consolidated.safetensors"], "weights are read from consolidated.safetensors, not from model.safetensors"),
        (
            ["consolidated.safetensors", "params.json"],
            "the configuration is read from params.json, not from config.json",
        ),
        (["params.json"], "the configuration is read from config.json, not from params.json"),
    ],
)
def test_the_choice_among_several_formats_is_reported(start, folder, names, text):
    for name in names:
        (folder / name).touch()
    messages = [finding.message for finding in _findings(start, folder) if finding.check == "choice"]
    assert f"{folder}: {text}" in messages
    assert not [f for f in _findings(start, folder, "--config-format", "hf") if f.check == "choice"]


@pytest.mark.parametrize(
    "name",
    [
        "._model.safetensors",
        ".model.safetensors",
        ".model-00001-of-00002.safetensors",
        "._model.safetensors.index.json",
        "._consolidated.safetensors",
        ".pytorch_model.bin",
        ".adapter_model.bin",
        ".model.gguf",
        ".params.json",
        ".chat_template.jinja",
        "1_Dense/._model.safetensors",
    ],
)
def test_hidden_files_are_no_second_set(start, folder, name):
    """Copies that are not complete yet, and what macOS leaves beside each file."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("xx")
    wanted = [WantedFiles(role="model", engine=engine) for engine in ("vllm", "embedded")]
    places = [find_place(str(folder), each, folder) for each in wanted]
    found = [*_findings(start, folder), *chain.from_iterable(choice_findings(p, has_template=True) for p in places)]
    assert [finding for finding in found if finding.check == "choice" or finding.severity == "error"] == []


@pytest.mark.parametrize("version", ["0.32.0+cpu", "9.9.0"])
def test_shards_in_a_subfolder_are_not_vllm_s(start, folder, version):
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "sub" / "b.safetensors")
    write_safetensors(folder / "a.safetensors", {"other": ("F32", [4], 16)})
    weight_map = {"weight": "sub/b.safetensors", "other": "a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (finding,) = [found for found in _findings(start, folder, version=version) if found.check == "weights"]
    assert "names sub/b.safetensors, but vLLM reads no weights in subfolders" in finding.message
    assert finding.severity == ("error" if version.startswith("0.32") else "warning")


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({"base_model_name_or_path": "a/b", "r": 8}, "serve a/b --engine vllm --enable-lora --lora-modules m=FOLDER`"),
        ({"base_model_name_or_path": "a/b", "r": 40}, "--enable-lora --max-lora-rank 64 --lora-modules m=FOLDER`"),
        ({"base_model_name_or_path": "/a b"}, "serve '/a b' --engine vllm"),
        ({"base_model_name_or_path": None, "r": "x"}, "serve BASE_MODEL --engine vllm --enable-lora --lora-modules"),
        ({"peft_type": "IA3", "base_model_name_or_path": "a/b"}, "a/b, of the kind IA3, which no engine serves"),
        ({"use_dora": True}, "of the kind DoRA, which no engine serves"),
        ([], "serve BASE_MODEL"),
    ],
    ids=repr,
)
def test_an_adapter_as_model_is_reported_with_the_command_that_serves_it(start, tmp_path, config, advice):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(folder / "adapter_model.safetensors", {"weight": ("F32", [4], 16)})
    for messages in _errors_of_both(start, folder):
        assert [advice.replace("FOLDER", str(folder)) in message for message in messages] == [True]
