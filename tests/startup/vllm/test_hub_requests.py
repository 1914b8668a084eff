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
from tests.support.s3_server import s3_server

MODEL, TOKENIZER = "s3://models/llama", "gs://models/words/"
AFTER_THE_DOWNLOAD = """import threading, time
while any(thread.name == "download-progress" for thread in threading.enumerate()):
    time.sleep(0.01)
"""
"""Code for a module of the fake vLLM. With this code, the fake's imports end after the download."""
NAMED = ("--served-model-name", MODEL)


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
    """The words for vLLM once everything is downloaded into /m and /t."""
    line = VllmLine.of(arguments)
    found = {download: Path("/t" if download.repo_id == TOKENIZER else "/m") for download in line.file_plan.downloads}
    return with_folders(line, found).arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((MODEL, "--port", "1"), ("/m", *NAMED, "--port", "1")),
        (("--model", MODEL), ("/m", *NAMED)),
        ((f"--model={MODEL}", "--port", "1"), ("/m", *NAMED, "--port", "1")),
        ((MODEL, "--served-model-name", MODEL), ("/m", *NAMED)),
        ((MODEL, "--tokenizer", TOKENIZER), ("/m", *NAMED, "--tokenizer", TOKENIZER, "--tokenizer", "/t")),
        (("org/model", "--tokenizer", TOKENIZER), ("org/model", "--tokenizer", TOKENIZER, "--tokenizer", "/t")),
        ((MODEL, "--load-format", "runai_streamer"), (MODEL, "--load-format", "runai_streamer")),
        (("org/model", "--served-model-name", MODEL), ("org/model", *NAMED)),
    ],
)
def test_only_words_that_name_files_are_replaced(arguments, expected):
    assert replaced(*arguments) == expected


def test_a_model_of_the_config_file_becomes_the_first_word_and_a_file_address_is_a_path(tmp_path):
    (tmp_path / "config.yaml").write_text(f"model: {MODEL}\n")
    arguments = ("--config", f"{tmp_path}/config.yaml")
    assert replaced(*arguments) == ("/m", *NAMED, *arguments)
    (tmp_path / "a b").mkdir()
    address = f"file://{tmp_path}/a%20b"
    assert replaced(address) == (f"{tmp_path}/a b", "--served-model-name", address)


def test_the_default_model_is_found_under_its_name(snapshot, tmp_path, monkeypatch):
    """It is served from the folder into which it was converted, unless the hub's own files are on disk."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    folder = shutil.copytree(snapshot, prepared_folder())
    assert replaced(DEFAULT_MODEL_ID) == (str(folder), "--served-model-name", DEFAULT_MODEL_ID)
    (tmp_path / "models--org--model").rename(tmp_path / f"models--{DEFAULT_MODEL_ID.replace('/', '--')}")
    assert replaced(DEFAULT_MODEL_ID) == (DEFAULT_MODEL_ID,)


def test_a_streaming_loader_that_is_installed_is_vllms_default(monkeypatch):
    monkeypatch.setattr("startup.files.model.wanted_files.find_spec", lambda name: object())
    assert replaced(MODEL) == (MODEL,)


@pytest.mark.thorough
def test_vllm_starts_with_the_folder_of_the_download(tmp_path):
    files = {
        "config.json": b'{"architectures": ["FakeForCausalLM"]}',
        "model.safetensors": b"x",
        "tokenizer.json": b"{}",
    }
    with s3_server() as s3:
        s3.put({f"llama/{name}": content for name, content in files.items()})
        with FakeStart(tmp_path, MODEL, env=environment(tmp_path, **s3.environment)) as start:
            start.wait_ready()
            _, _, folder, *rest = start.state()["server"]["argv"]
            assert set(NAMED) <= set(rest)
            assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == files


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
