"""vLLM sends no request to the hub if all files are on disk. It gets folders instead of addresses."""

import json
import os
import shutil
from itertools import chain
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from envs.registry import env
from startup.files.model.default_model import prepared_folder
from startup.files.model.file_plan import plan_files
from startup.settings.config import DEFAULT_MODEL_ID
from startup.vllm.launch.hub_requests import forbid_requests, is_caused_by_offline
from startup.vllm.launch.model_files import with_folders
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord, read_plugins
from tests.startup.files.download.conftest import write_snapshot
from tests.startup.vllm.fake_start import FakeStart, environment, prepend, variant
from tests.support.hub import HubServer
from tests.support.ports import free_port

AFTER_THE_DOWNLOAD = """import threading, time
while any(thread.name == "download-progress" for thread in threading.enumerate()):
    time.sleep(0.01)
"""
"""Code for a module of the fake vLLM. With this code, the fake's imports end after the download."""


@pytest.fixture(autouse=True)
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete snapshot of org/model."""
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE):
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return write_snapshot(tmp_path, "org/model")


def is_forbidden(*arguments: str) -> bool:
    record = VllmRecord(installed_plugins=tuple(chain.from_iterable(read_plugins().values())))
    line = VllmLine.of(("org/model", *arguments), record)
    forbidden = forbid_requests(line, plan_files(line.request))
    assert forbidden == (os.environ.get("HF_HUB_OFFLINE") == "1")
    return forbidden


def test_a_model_keeps_its_name_without_requests():
    arguments = VllmLine.of(("org/model", "-tp", "1")).with_served_name().arguments
    assert arguments == ("org/model", "--served-model-name", "org/model", "-tp", "1")
    named = VllmLine.of(("org/model", "--served-model-name", "mine"))
    assert named.with_served_name().arguments == named.arguments


@pytest.mark.parametrize(
    "arguments",
    [
        "--max-model-len 512",
        "--trust-remote-code",
        "--revision v2",
        "--tokenizer org/other",
        "--lora-modules a=org/adapter",
        '--speculative-config {"model":"org/draft"}',
        "--download-dir /tmp/models",
        "--worker-cls own.Worker",
        "--kv-transfer-config {}",
    ],
)
def test_flags_that_may_need_more_leave_requests_allowed(arguments):
    assert is_forbidden(*arguments.split()) == (arguments == "--max-model-len 512")


@pytest.mark.parametrize(
    ("variables", "config", "other"),
    [
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, {}, ""),
        ({"VLLM_LORA_RESOLVER_HF_REPO_LIST": "1"}, {}, ""),
        ({"VCLI_LEAVE_OUT": "offline hub"}, {}, ""),
        ({}, {"auto_map": {"AutoModel": "org/code--m.M"}}, ""),
        ({}, {"vision_config": {}}, ""),
        ({}, {}, "plugin"),
        ({}, {}, "incomplete"),
    ],
    ids=["runtime adapters", "adapters of the hub", "left out", "code", "parts", "plugin", "incomplete"],
)
def test_what_may_need_more_leaves_requests_allowed(variables, config, other, snapshot, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if other == "incomplete":
        (snapshot / "model.safetensors").unlink()
    if other == "plugin":
        metadata = tmp_path / "site" / "plugin-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nmine = plugin:register\n")
        monkeypatch.syspath_prepend(str(metadata.parent))
    assert not is_forbidden()


def test_errors_of_missing_files_are_known_wherever_they_were_raised():
    inner = LocalEntryNotFoundError("the file is not in the cache")
    outer = ValueError("the configuration cannot be loaded")
    outer.__cause__ = inner
    assert is_caused_by_offline(outer)
    assert not is_caused_by_offline(ValueError("these words about offline mode say nothing"))


def replaced(*arguments: str) -> tuple[str, ...]:
    """The arguments that vLLM gets."""
    return with_folders(VllmLine.of(arguments)).arguments


@pytest.mark.parametrize(
    "arguments",
    [
        "s3://models/llama --port 1",
        "gs://models/llama --load-format runai_streamer",
        "--model az://models/llama",
        "org/model --tokenizer s3://models/words/",
        "org/model --served-model-name s3://models/llama",
    ],
)
def test_vllm_itself_reads_from_object_stores(arguments):
    assert replaced(*arguments.split()) == tuple(arguments.split())


def test_a_file_address_becomes_a_path_and_a_model_of_the_config_file_the_first_argument(tmp_path):
    (tmp_path / "a b").mkdir()
    address, folder = f"file://{tmp_path}/a%20b", f"{tmp_path}/a b"
    named = ("--served-model-name", address)
    assert replaced(address, "--port", "1") == (folder, *named, "--port", "1")
    assert replaced(f"--model={address}", "--port", "1") == (folder, *named, "--port", "1")
    tokenizer = ("--tokenizer", address)
    assert replaced("org/model", *tokenizer) == ("org/model", *tokenizer, "--tokenizer", folder)
    (tmp_path / "config.yaml").write_text(f"model: {address}\n")
    arguments = ("--config", f"{tmp_path}/config.yaml")
    assert replaced(*arguments) == (folder, *named, *arguments)


def test_the_default_model_is_found_under_its_name(snapshot, tmp_path, monkeypatch):
    """It is served from the folder into which it was converted, unless the hub's own files are on disk."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    folder = shutil.copytree(snapshot, prepared_folder())
    assert replaced(DEFAULT_MODEL_ID) == (str(folder), "--served-model-name", DEFAULT_MODEL_ID)
    (tmp_path / "models--org--model").rename(tmp_path / f"models--{DEFAULT_MODEL_ID.replace('/', '--')}")
    assert replaced(DEFAULT_MODEL_ID) == (DEFAULT_MODEL_ID,)


@pytest.mark.thorough
def test_a_refused_model_ends_the_start_between_the_imports(tmp_path):
    fake = prepend(variant(tmp_path), "entrypoints/cli/main", AFTER_THE_DOWNLOAD)
    prepend(fake, "entrypoints/cli/serve", "print('imported cli.serve')\n")
    with HubServer().serving() as hub:
        hub.add("org/gated", {"config.json": b"{}", "model.safetensors": b"x"})
        hub.gated.add("org/gated")
        variables = environment(tmp_path, fake, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "hub"))
        with FakeStart(tmp_path, "org/gated", env=variables) as start:
            assert start.process.wait(60) == 3
            (line,) = start.lines_with("Error:")
    assert "org/gated is gated: ask for access at" in line
    assert "imported cli.serve" not in start.log


def test_a_wrong_name_without_a_hub_is_told_during_the_imports_with_a_similar_model_on_disk(tmp_path, snapshot):
    """vLLM may find it later: it tries the hub for half a minute. The fake imports only after the warning."""
    port = free_port()
    log = str(tmp_path / f"log-{port}")
    code = (
        f"import pathlib, time\nwhile 'itself looks' not in pathlib.Path({log!r}).read_text():\n    time.sleep(0.01)\n"
    )
    fake = prepend(variant(tmp_path), "entrypoints/cli/main", code)
    variables = environment(tmp_path, fake, HF_HUB_CACHE=str(tmp_path))
    with FakeStart(tmp_path, "org/mode1", env=variables, port=port) as start:
        start.wait_ready()
        (line,) = start.lines_with("itself looks")
    assert "org/mode1 is not cached, and the hub at http://127.0.0.1:9 cannot be reached" in line
    assert line.endswith("(did you mean 'org/model'?). vLLM itself looks for the model")


@pytest.mark.thorough
def test_a_branch_that_has_moved_is_on_disk_before_vllm_reads_it(tmp_path):
    config = b'{"architectures": ["FakeForCausalLM"]}'
    files = {"config.json": config, "model.safetensors": b"x", "tokenizer.json": b"{}"}
    ref = tmp_path / "hub" / "models--org--model" / "refs" / "main"
    fake = prepend(variant(tmp_path), "entrypoints/cli/main", AFTER_THE_DOWNLOAD)
    with HubServer().serving() as hub:
        variables = environment(tmp_path, fake, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "hub"))
        first, moved = hub.add("org/model", files).id, "b" * 40
        for commit, num_requests in ((first, None), (first, 1), (moved, None), (moved, 1)):
            if commit == moved:
                hub.add("org/model", files | {"chat_template.jinja": b"x"}, commit=moved)
            hub.reset()
            with FakeStart(tmp_path, "org/model", env=variables) as start:
                start.wait_ready()
                assert ref.read_text() == commit
            assert "has not answered" not in start.log
            assert num_requests in (None, len(hub.requests))
