"""`vllm-cli prefetch` downloads the files that `serve` with the same flags reads, and lists files on disk.

tests/e2e/chaos/test_full_disk.py tests its exit code for a full disk.
"""

import json
from typing import Any

import pytest

from tests.startup.files.download.conftest import MODEL
from vllm_cli.commands.prefetch import prefetch


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vllm_cli.commands.prefetch._configure_logs", lambda line: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        return (prefetch.main(list(arguments), standalone_mode=False), *capsys.readouterr())

    return call


def report(run, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(*arguments, "--download-only", "--json")
    return code, json.loads(out)


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_the_files_are_those_of_the_revision_and_engine(engine, run, hub_server, tmp_path):
    extras = {"pytorch_model.bin": b"x", "README.md": b"x", "onnx/model.onnx": b"x"}
    hub_server.add("org/model", MODEL | extras, revision="v2", commit="b" * 40)
    for revision in ("main", "v2"):  # vLLM takes the model's revision for the tokenizer, too
        hub_server.add("org/words", {"tokenizer.json": b"{}", "model.safetensors": b"x"}, revision=revision)
    flags = ("--revision", "v2", "--tokenizer", "org/words", "--download-dir", str(tmp_path / "models"))
    arguments = ("org/model", "--engine", engine, *flags)
    code, fields = report(run, *arguments)
    folder = tmp_path / "models" / "models--org--model" / "snapshots" / ("b" * 40)
    assert (code, fields["folder"], fields["downloaded"]) == (0, str(folder), ["org/model", "org/words"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(MODEL)
    assert "org/words/model.safetensors" not in hub_server.downloads
    hub_server.reset()
    assert report(run, *arguments)[1]["downloaded"] == []
    assert len(hub_server.requests) == 2  # whether the two branches have moved
    hub_server.add("org/model", MODEL | {"chat_template.jinja": b"x"}, revision="v2", commit="c" * 40)
    code, fields = report(run, *arguments)
    assert (code, fields["downloaded"], fields["commits"]["org/model"]) == (0, ["org/model"], "c" * 40)


@pytest.mark.thorough
def test_adapters_and_the_draft_model_are_downloaded_for_vllm(run, hub_server):
    hub_server.add(
        "org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(8) + b"{", "notes.txt": b""}
    )
    hub_server.add("org/draft", MODEL)
    flags = ("--lora-modules", "a=org/adapter", "--speculative-config", '{"model": "org/draft"}')
    code, fields = report(run, "org/model", "--engine", "vllm", *flags)
    assert (code, fields["downloaded"]) == (0, ["org/model", "org/draft", "org/adapter"])
    assert "org/draft/model.safetensors" in hub_server.downloads
    assert "org/adapter/notes.txt" not in hub_server.downloads


@pytest.mark.thorough
def test_files_that_cannot_be_had_have_their_exit_codes(run, hub_server, monkeypatch):
    hub_server.gated.add("org/model")
    arguments = ("org/model", "--engine", "embedded")
    code, fields = report(run, *arguments)
    assert (code, fields["state"]) == (5, "no_access")
    assert "is gated" in fields["reason"]
    assert report(run, "org/nothing", *arguments[1:])[0] == 5
    no_revision = "Error: org/model has no revision 'v9': correct --revision\n"
    assert run(*arguments, "--revision", "v9") == (5, "", no_revision)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, fields = report(run, *arguments)
    assert (code, fields["state"]) == (3, "incomplete")
    assert "HF_HUB_OFFLINE forbids the download" in fields["reason"]


def test_a_model_that_vllm_itself_reads_needs_nothing(run):
    arguments = ("s3://bucket/model", "--engine", "vllm", "--load-format", "runai_streamer")
    assert report(run, *arguments) == (0, {"state": "off", "reason": "vLLM reads s3://bucket/model itself"})
    with pytest.raises(Exception, match="MODEL is missing"):
        run(*arguments[1:])
