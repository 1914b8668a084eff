"""The model comes from a folder, the hub's cache, the hub, or the hub's mirrors. The hub is a fake."""

import json
import os
import socket
from pathlib import Path

import pytest

from startup.errors import ModelNotFoundError
from startup.files.download.obtain import resolve_model
from startup.files.model.file_plan import plan_files
from startup.files.model.hub_settings import hub_endpoints, use_first_endpoint
from startup.files.model.request import ModelRequest
from startup.settings.config import DEFAULT_MODEL_ID
from tests.startup.files.download.conftest import COMMIT, MODEL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def write_model(folder: Path, **changes: bytes | None) -> Path:
    folder.mkdir(parents=True)
    for name, content in (MODEL | changes).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def write_snapshot(cache: Path, model_id: str) -> Path:
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT)


def problem(model: str | Path, **settings: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(ModelRequest(model=str(model), **settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_real_models_folder_is_used_in_place(model_path):
    files = resolve_model(ModelRequest(model=str(model_path)))
    assert files.path == files.tokenizer_path == model_path


def test_a_relative_folder_becomes_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve_model(ModelRequest(model="model")).path == folder


def test_the_tokenizer_may_be_in_another_folder(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").touch()
    files = resolve_model(ModelRequest(model=str(folder), tokenizer=str(tokenizer)))
    assert (files.path, files.tokenizer_path) == (folder, tokenizer)


def test_a_missing_folder_and_a_file_are_errors(tmp_path):
    (tmp_path / "model.bin").touch()
    for name, told in (
        ("missing", "is neither a folder nor a model of the Hugging Face hub"),
        ("model.bin", "cannot be read: Not a directory"),
    ):
        assert problem(tmp_path / name) == f"{tmp_path}/{name} {told}"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{oops}", "{0}/config.json is not JSON: Expecting property name"),
        ("tokenizer.json", None, "{0} has no tokenizer. Name one with --tokenizer"),
    ],
)
def test_the_fault_of_a_folder_is_reported(tmp_path, name, content, expected):
    """tests/startup/session/preflight/test_preflight_checkpoint.py has all faults."""
    folder = write_model(tmp_path / "model", **{name: content})
    assert expected.format(folder) in problem(folder)


def test_a_cached_snapshot_needs_no_download(cache, hub_server):
    snapshot = write_snapshot(cache, "org/model")
    assert resolve_model(ModelRequest(model="org/model", revision=COMMIT)).path == snapshot
    assert hub_server.requests == []
    assert resolve_model(ModelRequest(model="org/model")).path == snapshot
    assert hub_server.downloads == []


def test_the_default_model_is_taken_from_the_cache(cache, hub_server):
    hub_server.add(DEFAULT_MODEL_ID, MODEL, commit=COMMIT)
    snapshot = write_snapshot(cache, DEFAULT_MODEL_ID)
    assert resolve_model(ModelRequest()).path == snapshot
    assert hub_server.downloads == []


def test_the_prepared_default_model_takes_precedence(tmp_path, cache):
    write_snapshot(cache, DEFAULT_MODEL_ID)
    prepared = write_model(tmp_path / "vllm" / "vllm_cli" / "models" / "SmolLM2-135M-Instruct")
    assert resolve_model(ModelRequest()).path == prepared


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "in the cache"])
def test_the_default_model_is_the_same_by_its_name(is_prepared, tmp_path, cache, hub_server):
    """Its files are in one place, and may be obtained in the same ways. A revision is the hub's."""
    hub_server.add(DEFAULT_MODEL_ID, MODEL, commit=COMMIT)
    snapshot = write_snapshot(cache, DEFAULT_MODEL_ID)
    if is_prepared:
        write_model(tmp_path / "vllm" / "vllm_cli" / "models" / "SmolLM2-135M-Instruct")
    unnamed, named = (plan_files(ModelRequest(model=model)).model for model in (None, DEFAULT_MODEL_ID))
    assert (unnamed, named.is_default, named.folder == snapshot) == (named, not is_prepared, not is_prepared)
    at_revision = plan_files(ModelRequest(model=DEFAULT_MODEL_ID, revision=COMMIT)).model
    assert (at_revision.folder, at_revision.is_default) == (snapshot, False)
    assert plan_files(ModelRequest(model=DEFAULT_MODEL_ID, engine="vllm")).model.folder == snapshot


def test_the_default_model_is_downloaded_if_the_hub_is_reachable(hub_server, cache):
    hub_server.add(DEFAULT_MODEL_ID, MODEL)
    path = resolve_model(ModelRequest()).path
    assert path.is_relative_to(cache)
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_a_tokenizer_is_downloaded_without_weights(hub_server, folder):
    files = resolve_model(ModelRequest(model=str(folder), tokenizer="org/model"))
    assert sorted(hub_server.downloads) == ["org/model/config.json", "org/model/tokenizer.json"]
    assert (files.tokenizer_path / "tokenizer.json").exists()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_sends_no_request(hub_server, cache, variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert problem("org/model") == f"org/model is not in {cache}, and HF_HUB_OFFLINE forbids the download"
    assert hub_server.requests == []


@pytest.mark.thorough
def test_a_hub_that_never_answers_gets_one_request(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached" in problem("org/model")
        silent.settimeout(60)
        silent.accept()[0].close()
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_the_hub_itself_is_used_without_a_mirror():
    assert hub_endpoints() == ("https://huggingface.co",)


def test_libraries_see_the_first_of_several_mirrors(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example/, https://b.example,,https://a.example")
    assert hub_endpoints() == ("https://a.example", "https://b.example")
    use_first_endpoint()
    assert os.environ["HF_ENDPOINT"] == "https://a.example"
    assert hub_endpoints() == ("https://a.example", "https://b.example")
    use_first_endpoint()
    assert hub_endpoints() == ("https://a.example", "https://b.example")


def test_a_variable_that_was_changed_since_is_obeyed(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example,https://b.example")
    use_first_endpoint()
    monkeypatch.setenv("HF_ENDPOINT", "https://c.example")
    assert hub_endpoints() == ("https://c.example",)


@pytest.mark.parametrize("form", ["file", "team/model-GGUF:UD-Q4_K_XL", "folder"])
def test_the_files_of_a_gguf_model_are_llama_servers(form, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    name = {"file": str(tmp_path / "a.gguf"), "folder": str(tmp_path)}.get(form, form)
    with pytest.raises(ModelNotFoundError, match=r"put its `llama-server` on PATH, and start `vllm-cli serve "):
        resolve_model(ModelRequest(model=name))


def test_an_adapter_s_folder_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelNotFoundError, match=r"is an adapter: give its base model, and .* --lora-modules NAME="):
        resolve_model(ModelRequest(model=str(tmp_path)))


def test_shards_in_a_subfolder_of_a_repository_are_downloaded(cache, hub_server):
    files = {name: content for name, content in MODEL.items() if not name.endswith(".safetensors")}
    index = json.dumps({"weight_map": {"a": "sub/a.safetensors", "b": "sub/b.safetensors"}}).encode()
    weights = {"sub/a.safetensors": b"a", "sub/b.safetensors": b"b", "other/c.safetensors": b"c"}
    hub_server.add("org/model", {**files, "model.safetensors.index.json": index, **weights}, commit=COMMIT)
    folder = resolve_model(ModelRequest(model="org/model")).path
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == [
        "sub/a.safetensors",
        "sub/b.safetensors",
    ]
    assert plan_files(ModelRequest(model="org/model")).model.kind == "snapshot"
