"""The flags of `serve` that llama-server gets for a GGUF model, and the flags that are refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from router.arguments.router_arguments import read_several
from router.arguments.router_options import ModelsReader
from router.router import RouterOptions
from startup.arguments.serve_command import parse_start, read_start
from startup.settings.serve_arguments import LauncherLine

HUB = "team/Model-GGUF:Q4_K_M"


@pytest.fixture
def llama_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv("VCLI_ENGINE", raising=False)
    return program


@pytest.fixture
def model(llama_server: Path, tmp_path: Path) -> Path:
    file = tmp_path / "qwen.gguf"
    file.write_bytes(b"GGUF")
    return file


def options_of(*arguments: object) -> RouterOptions:
    several = read_several(read_start(LauncherLine(list(map(str, arguments)))).read.of_router)
    reader = ModelsReader(several)
    return reader.router_options(reader.read())


def command_of(*arguments: object) -> Sequence[str]:
    """The command of the only model, without the arguments that every command has."""
    options = options_of(*arguments)
    (entry,) = options.entries.values()
    assert (options.only, entry.preload, entry.arguments, entry.engine) == (entry.name, True, (), "other")
    begin = ("--host", "127.0.0.1", "--port", "${PORT}", "--metrics", "--jinja", "--alias")
    assert entry.foreign.arguments[0] == "llama-server"
    assert entry.foreign.arguments[3:10] == begin
    return (*entry.foreign.arguments[1:3], *entry.foreign.arguments[10:])


def test_the_model_of_a_file_a_folder_or_the_hub(model, tmp_path):
    assert command_of(model) == ("-m", str(model), "qwen.gguf")
    assert command_of("--seed", "1", model) == ("-m", str(model), "qwen.gguf", "--seed", "1")
    assert command_of("--model", model) == ("-m", str(model), "qwen.gguf")
    folder = tmp_path / "big"
    folder.mkdir()
    for name in ("mmproj-big.gguf", "big-00002-of-00002.gguf", "big-00001-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF")
    projector = ("--mmproj", str(folder / "mmproj-big.gguf"))
    assert command_of(folder) == ("-m", str(folder / "big-00001-of-00002.gguf"), "big", *projector)
    assert command_of(HUB) == ("-hf", HUB, HUB)


def test_a_config_file_is_read_once(model):
    """It may be a pipe."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, json.dumps({"model": str(model), "port": 7, "max-model-len": "2K", "seed": 3}).encode())
    os.close(write_fd)
    options = options_of("--config", f"/dev/fd/{read_fd}", "--seed", "4")
    os.close(read_fd)
    foreign = options.entries["qwen.gguf"].foreign
    assert foreign.arguments[1:3] == ("-m", str(model))
    assert foreign.arguments[11:] == ("--ctx-size", "2048", "--seed", "4")
    assert options.config.server.network.port == 7


def test_llama_server_downloads_nothing_in_offline_mode(llama_server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command_of(HUB) == ("-hf", HUB, HUB, "--offline")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("--max-model-len 4K", "--ctx-size 4096"),
        ("--max-model-len auto", ""),
        ("--max-num-seqs 128", "--parallel 128 --kv-unified"),
        ("--max-model-len 4K --max-num-seqs 2", "--ctx-size 8192 --parallel 2"),
        ("--max-num-batched-tokens 1K", "--batch-size 1024"),
        ("--seed 0", "--seed 0"),
        ("--chat-template {{x}}", "--chat-template {{x}}"),
        ("--chat-template FILE", "--chat-template-file FILE"),
        ("--enable-prefix-caching", ""),
        ("--no-enable-prefix-caching", "--no-cache-prompt"),
        ("--runner pooling", "--embeddings"),
        ("--dtype auto --load-format gguf --quantization gguf --tensor-parallel-size 1 --standby off", ""),
        ("--enable-auto-tool-choice --no-trust-remote-code", ""),
        ("--port 1 --http-max-connections 5 --preflight warn --log-level ERROR", ""),
    ],
)
def test_flags_become_those_of_llama_server(arguments, command, model, tmp_path):
    template = tmp_path / "template.jinja"
    template.touch()
    given, wanted = (text.replace("FILE", str(template)).split() for text in (arguments, command))
    assert command_of(model, *given)[3:] == (*wanted,)


def test_variables_of_the_chat_template_are_passed_on(model):
    arguments = command_of(model, "--default-chat-template-kwargs", '{"enable_thinking": false}')[3:]
    assert (arguments[0], json.loads(arguments[1])) == ("--chat-template-kwargs", {"enable_thinking": False})


def test_the_port_s_flags_and_names_are_the_router_s(model):
    options = options_of(
        model,
        *("--served-model-name", "a", "b", "--port", "7", "--api-key", "k", "--idle-stop", "5m"),
        *("--restart", "on-failure:2", "--hf-token", "secret"),
    )
    network = options.config.server.network
    assert (network.port, network.api_keys, options.only) == (7, ("k",), "a")
    entry = options.entries["a"]
    assert (entry.aliases, entry.ttl_s, entry.restart_limit) == (("b",), 300, 2)
    assert dict(entry.env) == {"HF_TOKEN": "secret"}
    assert entry.foreign.arguments[-2:] == ("--alias", "a")
    assert "secret" not in entry.foreign.arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max-num-seqs 0", "--max-num-seqs must be 1 or more, got 0"),
        ("--max-model-len soon", "soon"),
        ("--prt 1", "No such option: --prt"),
        (
            "--dtype float32 --seed 1 --lora-modules a=b --tokenizer=x",
            "Error: qwen.gguf: is served by llama-server, which has no counterpart of --dtype, --lora-modules, "
            "--tokenizer: leave them out",
        ),
    ],
    ids=["value", "text", "flag", "all without a counterpart"],
)
def test_a_wrong_value_or_flag_is_a_usage_error(arguments, message, model, invoke):
    done = invoke("serve", str(model), *arguments.split())
    assert done.returncode == 2
    assert message in done.stderr


def test_preflight_only_reports_the_model(model, invoke):
    done = invoke("serve", str(model), "--preflight-only", "--json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, finding["severity"], finding["check"]) == (0, "unchecked", "cmd")
    done = invoke("serve", str(model), "--preflight-only", "--dtype", "float32")
    assert (done.returncode, "--dtype" in done.stdout) == (2, True)


@pytest.mark.thorough
def test_beside_other_models_it_is_started_by_a_request(model, tiny_llama, tmp_path):
    entries = options_of(model, tiny_llama, "--max-model-len", "256", "--seed=1").entries
    gguf, other = entries["qwen.gguf"], entries[tiny_llama.name]
    assert gguf.foreign.arguments[11:] == ("--ctx-size", "256", "--seed", "1")
    assert (gguf.preload, other.engine, other.foreign) == (False, "embedded", None)
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"q": {"model": str(model), "args": "--max-num-seqs 2"}}}))
    entry = options_of("--models", file).entries["q"]
    assert entry.foreign.arguments[10:] == ("q", "--parallel", "2", "--kv-unified")


def test_without_llama_server_the_error_says_what_is_missing(model, llama_server, invoke):
    llama_server.unlink()
    done = invoke("serve", str(model), "--preflight-only")
    assert done.returncode == 3
    assert "is a GGUF file, which llama.cpp serves: put its `llama-server` on PATH" in done.stdout


@pytest.mark.parametrize("form", ["file", "folder", "hub", "--model", "--config", "models file"])
def test_beside_a_vllm_that_reads_no_gguf_auto_is_llama_server(form, model, tmp_path, monkeypatch):
    """vLLM has left GGUF to a plugin. With it, the model is vLLM's."""

    def install(package: str) -> None:
        (folder := tmp_path / "packages" / package).mkdir(parents=True)
        (folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(folder.parent)

    file, keys = tmp_path / "file.yaml", {"model": str(model)}
    file.write_text(json.dumps({"models": {"q": keys}} if form == "models file" else keys))
    arguments = {"file": [model], "folder": [tmp_path], "hub": [HUB], "--model": ["--model", model]}
    given = list(map(str, arguments.get(form, [f"--{form.removeprefix('--').replace(' file', '')}", file])))
    install("vllm")
    assert _engine_of(*given) == "other"
    assert _engine_of(*given, "--engine", "auto") == "other"
    assert _engine_of(*given, "--engine", "vllm") == "vllm"
    install("vllm_gguf_plugin")
    assert _engine_of(*given) == "vllm"


def _engine_of(*arguments: str) -> str:
    read = read_start(LauncherLine(arguments))
    if read.start is not None:
        return "vllm"
    (entry,) = ModelsReader(read_several(read.read.of_router)).read().entries.values()
    return entry.engine


def test_of_several_models_in_a_folder_the_log_names_the_others(model, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    (notice,) = ModelsReader(read_several(read_start(LauncherLine([str(tmp_path)])).read.of_router)).read().notices
    assert f"other.gguf of {tmp_path} is served, not qwen.gguf: name the file for another" in str(notice)


def test_a_part_that_is_missing_is_named_before_the_start(llama_server, tmp_path, invoke):
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    done = invoke("serve", str(tmp_path), "--preflight-only")
    assert done.returncode == 2
    assert "lacks m-00002-of-00002.gguf: copy them beside m-00001-of-00002.gguf" in done.stdout


def test_with_vllm_the_model_is_vllm_s(model, monkeypatch):
    monkeypatch.setenv("VCLI_ENGINE", "vllm")
    assert read_start(LauncherLine([str(model)])).start is not None


@pytest.mark.parametrize("names", [["config.json", "model.safetensors", "model.gguf"], ["model.safetensors"]])
def test_other_folders_are_not_llama_server_s(names, llama_server, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert read_start(LauncherLine([str(tmp_path)])).start is not None


def test_a_command_that_only_reads_the_words_takes_no_gguf_model(model):
    assert parse_start([str(model)]).model.model == str(model)  # type: ignore[union-attr]
