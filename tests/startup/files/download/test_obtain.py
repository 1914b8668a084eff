"""The model comes from a folder, the hub's cache, the hub, or the hub's mirrors. The hub is a fake."""

import os
import socket

import pytest

from startup.errors import ModelNotFoundError
from startup.files.download.obtain import resolve_model
from startup.files.model.file_plan import plan_files
from startup.files.model.hub_settings import hub_endpoints, use_first_endpoint
from startup.files.model.model_request import ModelRequest
from startup.settings.config import DEFAULT_MODEL_ID
from tests.startup.files.download.conftest import COMMIT, MODEL, write_model, write_snapshot


def problem(model: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(ModelRequest(model=model))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_relative_folder_becomes_absolute_and_its_tokenizer_may_be_in_another_folder(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    files = resolve_model(ModelRequest(model="model"))
    assert files.path == files.tokenizer_path == folder
    (folder / "tokenizer.json").unlink()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").touch()
    files = resolve_model(ModelRequest(model=str(folder), tokenizer=str(tokenizer)))
    assert (files.path, files.tokenizer_path) == (folder, tokenizer)


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("{}/missing", {}, "{}/missing is neither a folder nor a name on the Hugging Face hub"),
        ("{}/model.bin", {"model.bin": b""}, "{}/model.bin is a file: give the folder that holds config.json"),
        ("{}", MODEL | {"config.json": b"{oops}"}, "{}/config.json is not JSON: Expecting property name"),
        ("{}", {**MODEL, "tokenizer.json": None}, "{} has no tokenizer. Name one with --tokenizer"),
        (
            "{}",
            {"adapter_config.json": b'{"base_model_name_or_path": "team/base"}', "adapter_model.safetensors": b""},
            "{} is an adapter of team/base: run `vllm-cli serve team/base --engine vllm --enable-lora --lora-modules ",
        ),
    ],
    ids=["missing", "file", "config", "tokenizer", "adapter"],
)
def test_what_is_no_model_is_reported_in_one_line(name, files, expected, tmp_path):
    """tests/startup/session/preflight/test_preflight_checkpoint.py has all faults of a folder."""
    for file, content in files.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
    assert expected.replace("{}", str(tmp_path)) in problem(name.format(tmp_path))


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "in the cache"])
def test_the_default_model_is_the_same_by_its_name(is_prepared, tmp_path, cache, hub_server):
    """Its files are in one place, and may be obtained in the same ways. A revision is the hub's."""
    hub_server.add(DEFAULT_MODEL_ID, MODEL, commit=COMMIT)
    snapshot = write_snapshot(cache, DEFAULT_MODEL_ID)
    if is_prepared:
        prepared = write_model(tmp_path / "vllm" / "vllm_cli" / "models" / "SmolLM2-135M-Instruct")
    unnamed, named = (plan_files(ModelRequest(model=model)).model for model in (None, DEFAULT_MODEL_ID))
    assert (unnamed, named.is_default, named.folder == snapshot) == (named, not is_prepared, not is_prepared)
    at_revision = plan_files(ModelRequest(model=DEFAULT_MODEL_ID, revision=COMMIT)).model
    assert (at_revision.folder, at_revision.is_default) == (snapshot, False)
    assert plan_files(ModelRequest(model=DEFAULT_MODEL_ID, engine="vllm")).model.folder == snapshot
    assert resolve_model(ModelRequest()).path == (prepared if is_prepared else snapshot)
    assert hub_server.downloads == []


@pytest.mark.thorough
def test_the_default_model_is_downloaded_if_the_hub_is_reachable(hub_server, cache):
    hub_server.add(DEFAULT_MODEL_ID, MODEL)
    path = resolve_model(ModelRequest()).path
    assert path.is_relative_to(cache)
    assert (path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.thorough
def test_a_tokenizer_is_downloaded_without_weights(hub_server, tmp_path):
    files = resolve_model(ModelRequest(model=str(write_model(tmp_path / "model")), tokenizer="org/model"))
    assert sorted(hub_server.downloads) == ["org/model/config.json", "org/model/tokenizer.json"]
    assert (files.tokenizer_path / "tokenizer.json").exists()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_sends_no_request(hub_server, cache, variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert problem("org/model").startswith(f"org/model is not in {cache}, and HF_HUB_OFFLINE forbids the download: ")
    assert hub_server.requests == []


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str)
@pytest.mark.parametrize("name", ["org/mode1", "mode1", "org/other"])
def test_a_wrong_name_without_a_hub_is_told_with_a_similar_model_on_disk(name, variables, tmp_path, cache, monkeypatch):
    """One in the cache, or a folder here."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    write_snapshot(cache, "org/model")
    (tmp_path / "work" / "mode").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    near = {"org/mode1": "org/model", "mode1": "mode"}.get(name)
    assert ("did you mean" in problem(name)) == (near is not None)
    assert near is None or f" (did you mean {near!r}?)" in problem(name)


@pytest.mark.thorough
def test_a_hub_that_never_answers_gets_one_request(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached" in problem("org/model")
        silent.settimeout(60)
        received = []
        for _ in range(2):  # the first connection only finds out that the hub can be reached
            connection = silent.accept()[0]
            with connection:
                received.append(connection.recv(4))
        assert received == [b"", b"GET "]
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_libraries_see_the_first_of_several_mirrors_until_the_variable_changes(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://a.example/, https://b.example,,https://a.example")
    for _ in range(3):
        assert hub_endpoints() == ("https://a.example", "https://b.example")
        use_first_endpoint()
        assert os.environ["HF_ENDPOINT"] == "https://a.example"
    monkeypatch.setenv("HF_ENDPOINT", "https://c.example")
    assert hub_endpoints() == ("https://c.example",)
