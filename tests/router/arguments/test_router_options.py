"""Several models on the command line: flags of the router, flags of each model, and the models' checks."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.arguments.router_arguments import SeveralModels, read_several
from router.arguments.router_options import CheckedModels, ModelsReader
from router.model_entry import ModelEntry, ModelsFileError
from router.router import RouterOptions
from startup.arguments.errors import InputError
from startup.arguments.serve_command import read_start
from startup.settings.serve_arguments import LauncherLine
from startup.standby.front_process import serve_warm
from tests.startup.vllm.fake_start import FAKE
from tests.support.marks import thorough_but_for

COMMON = ("--engine", "embedded")


def several(*arguments: object) -> SeveralModels:
    return read_several(read_start(LauncherLine(list(map(str, arguments)))).read.of_router)


def options_of(*arguments: object) -> RouterOptions:
    reader = ModelsReader(several(*arguments))
    return reader.router_options(reader.read())


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(**content: Any) -> Path:
        path = tmp_path / "models.yaml"
        path.write_text(json.dumps(content))
        return path

    return write_file


@pytest.fixture
def read(write) -> Callable[..., CheckedModels]:
    def read_models(models: dict[str, Any], *arguments: str, **content: Any) -> CheckedModels:
        return ModelsReader(several("--models", write(models=models, **content), *COMMON, *arguments)).read()

    return read_models


@pytest.fixture
def entry(read, tiny_llama: Path) -> Callable[..., ModelEntry]:
    """Reads the only model of a models file. The default model is the tiny Llama."""

    def entry_of(keys: dict[str, Any], *arguments: str) -> ModelEntry:
        checked = read({"m": {"model": str(tiny_llama)} | keys}, *arguments)
        assert checked.faults == ()
        return checked.models["m"].entry

    return entry_of


@pytest.mark.parametrize("arguments", ["a b", "--models f"])
def test_a_router_is_not_forked_from_a_standby(arguments, monkeypatch):
    monkeypatch.setenv("VCLI_STANDBY", "require")
    assert serve_warm(LauncherLine(arguments.split())) is None


def test_flags_become_options(write, tiny_llama):
    file = write(models={"m": {"model": str(tiny_llama)}}, apiKeys=["of-file"], logLevel="error")
    options = options_of(
        *("--models", file, *COMMON, "--port", "1", "--host", "h", "--api-key", "own", "--max-running", "2"),
        *("--max-wait", "3", "--max-waiting", "7", "--memory-budget", "9GiB"),
        *("--disable-uvicorn-access-log", "--startup-timeout", "30", "--on-swap", "sleep"),
    )
    server, limits = options.config.server, options.config.several
    assert (server.network.host, server.network.port, server.tls.ssl_certfile) == ("h", 1, None)
    assert server.network.api_keys == ("own", "of-file")
    assert (limits.memory_budget_bytes, limits.max_running, limits.max_wait_s, limits.max_waiting) == (9 << 30, 2, 3, 7)
    assert (server.logging.disable_access_log, options.config.logging_level, options.path) == (True, "ERROR", file)
    assert (options.config.limits.max_body_bytes, options.config.limits.max_held_bytes) == (256 << 20, 4 << 30)
    assert (options.entries["m"].start_timeout_s, options.entries["m"].on_swap) == (30, "sleep")
    assert options.find_template_kinds() == ("embedded",)
    assert options.find_model("m") == str(tiny_llama)
    assert options.find_model("other") is None
    assert options_of("--models", file, *COMMON, "--log-level", "debug").config.logging_level == "DEBUG"


@pytest.mark.parametrize("arguments", [("--standby", "off"), ("--trust-remote-code",)], ids=str)
def test_without_a_use_there_is_no_standby(arguments, write, tiny_llama):
    file = write(models={"m": {"model": str(tiny_llama)}})
    assert options_of("--models", file, *COMMON, *arguments).find_template_kinds() == ()


def test_a_models_flags_come_after_the_defaults(entry, tiny_llama):
    found = entry({"args": {"max-model-len": 128}, "aliases": ["x"]}, "--max-model-len", "256", "--seed", "1")
    assert found.arguments == (
        *(str(tiny_llama), "--max-model-len", "256", "--seed", "1", "--max-model-len=128", "--engine", "embedded"),
        *("--disable-uvicorn-access-log", "--served-model-name", "m", "x"),
    )
    assert found.engine == "embedded"


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ("--served-model-name own other", ("own", "other", "m", "x")),
        ("--served_model_name=own", ("own", "m", "x")),
        ("--served-model-name m", ("m", "x")),
        ("--served-model-name a --served-model-name b", ("b", "m", "x")),
        ("", ("m", "x")),
    ],
)
def test_the_served_names_are_the_users_and_those_of_the_file(entry, args, names):
    found = entry({"args": args, "aliases": ["x"]})
    assert found.arguments[found.arguments.index("--served-model-name") + 1 :] == names
    assert set(found.request_names) == {*names}
    assert found.name == "m"


@pytest.mark.thorough
def test_secrets_are_variables_of_the_process_and_not_words(entry):
    found = entry({"args": "--hf-token inner"}, "--hf-token", "outer")
    assert not {"inner", "outer"} & set(found.arguments)
    assert found.env["HF_TOKEN"] == "inner"
    assert "inner" not in repr(found)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown flag": ({"args": "--max-modl-len 5"}, "No such option: --max-modl-len (did you mean '--max-model-len'?)"),
    "wrong value": ({"args": "--max-model-len 5x"}, "'5x' is not a whole number"),
    "out of range": ({"args": "--max-num-seqs 0"}, "--max-num-seqs must be"),
    "no value": ({"args": "--max-model-len"}, "requires an argument"),
    "not embedded": ({"args": "--tensor-parallel-size 2"}, "Use --engine vllm"),
    "too long": ({"args": "--max-model-len 99999999"}, "is more than the model's own limit of"),
    "no model": ({"model": "/nowhere"}, "/nowhere is neither a folder nor a name"),
    "engine": ({"args": "--engine other"}, "--engine 'other' is not one of"),
    "address": ({"args": "--hos x"}, "must not have --hos: requests for all models come to the port"),
    "router": ({"args": "--max-running 2"}, "must not have --max-running: it belongs on the command line"),
    "idle": ({"args": "--idle-stop 5m"}, "must not have --idle-stop: ttl is its time without requests"),
    "key": ({"args": "--api-ke x"}, "must not have --api-ke: give it on the command line"),
    "port": ({"args": {"port": 1}}, "must not have --port: requests for all models come to the port"),
    "key of a command": ({"model": None, "cmd": "vllm serve x --api_key k"}, "must not have --api-key: give it on"),
    "TLS of a command": ({"model": None, "cmd": "vllm serve x --ssl-keyfile k"}, "not have --ssl-keyfile: it belongs"),
    "limit": ({"args": "--http-header-timeout 5"}, "must not have --http-header-timeout: it belongs to the port"),
    "help": ({"args": "--help"}, "must not have --help or --version"),
    "GGUF": ({"model": "m.gguf"}, "`cmd: llama-server --port ${PORT} -m m.gguf` in a file for --models"),
    "config": ({"args": "--config nowhere.yaml"}, "cannot be read"),
    "program": ({"model": None, "cmd": "no-program --port ${PORT}"}, "the program 'no-program' of cmd is not found"),
    "variable": ({"env": {"VLLM_LOG_STATS_INTERVAL": "often"}}, "VLLM_LOG_STATS_INTERVAL must be a number"),
    "no Python": ({"env": {"PYTHONHOME": "/nowhere"}}, "cannot be checked with its env: Python ends with exit code 1"),
    "vllm": ({"engine": "vllm"}, "vLLM is not installed in this environment"),
}


_CHECKS = {
    "no model": "model",
    "too long": "max_model_len",
    "program": "program",
    "vllm": "engine",
    "no Python": "engine",
}
"""Fault -> the check that finds it, unless it is `usage`."""
_QUICK = ("unknown flag", "GGUF", "too long", "no model", "key", "program", "no Python")


@pytest.mark.parametrize("name", thorough_but_for(FAULTS, *_QUICK))
def test_a_fault_of_a_model_has_its_line(name, read, tiny_llama):
    keys, message = FAULTS[name]
    given = {key: value for key, value in ({"model": str(tiny_llama)} | keys).items() if value is not None}
    checked = read({"m": given})
    assert len(checked.faults) == 1
    (fault,) = checked.faults
    assert message in fault.text
    assert (fault.line, fault.key, fault.check) == (1, "models.m", _CHECKS.get(name, "usage"))


def test_faults_of_the_file_and_of_all_models_are_reported_at_once(read, tiny_llama):
    model = {"model": str(tiny_llama)}
    checked = read(
        {
            "a": model | {"ttl": "x"},
            "b": model | {"args": "--nonsense"},
            "c": {"model": "/nowhere"},
            "d": model | {"args": "--served-model-name e"},
            "e": model,
        }
    )
    assert [(fault.key, fault.check) for fault in checked.faults] == [
        ("models.a.ttl", "usage"),
        ("models.b", "usage"),
        ("models.c", "model"),
        ("models.e", "usage"),
    ]
    assert "answers to 'e', as does d" in checked.faults[-1].text


def test_a_model_that_never_fits_is_refused(read, tiny_llama):
    checked = read({"m": {"model": str(tiny_llama)}}, "--memory-budget", "1MiB")
    assert [fault.check for fault in checked.faults] == ["memory"]
    assert "of memory, and --memory-budget is 1" in checked.faults[0].text


def test_pinned_models_must_leave_room_for_the_others(read, tiny_llama):
    model = {"model": str(tiny_llama)}
    models = {"a": model | {"pinned": True}, "b": model}
    assert read(models, "--max-running", "2").faults == ()
    (fault,) = read(models, "--max-running", "1").faults
    assert fault.text == "--max-running 1 leaves no room beside the pinned models a"


@pytest.mark.parametrize("setting", ["api-key: s3cret", "api-key-file: keys.txt", "api-key-everywhere: true"])
@pytest.mark.parametrize("variable", ["", "sk-of-the-router"])
def test_a_models_config_file_has_no_key(setting, variable, read, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", variable)
    config = tmp_path / "config.yaml"
    config.write_text(setting)
    (fault,) = read({"m": {"model": str(tiny_llama), "args": {"config": str(config)}}}).faults
    assert f"its --config must not have {setting.partition(':')[0]}" in fault.text


def test_keys_of_the_router_are_no_keys_of_its_models(read, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-of-the-router")
    keys = tmp_path / "keys.txt"
    keys.write_text("one\ntwo\n")
    model = {"m": {"model": str(tiny_llama)}}
    for arguments in ((), ("--api-key", "one", "two"), ("--api-key-file", str(keys)), ("--api-key-everywhere",)):
        assert read(model, *arguments).faults == (), arguments


@pytest.fixture
def cached(tiny_llama: Path, tmp_path: Path) -> Path:
    """A cache of the hub with the model org/tiny."""
    repository = tmp_path / "cached" / "models--org--tiny"
    shutil.copytree(tiny_llama, repository / "snapshots" / "a1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a1")
    return repository.parent


@pytest.mark.thorough
@pytest.mark.parametrize("has_it", ["model", "router"])
def test_a_model_is_checked_with_its_own_variables(has_it, read, cached, tmp_path, monkeypatch):
    folders = {"model": str(tmp_path / "none"), "router": str(tmp_path / "none")} | {has_it: str(cached)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", folders["router"])
    checked = read({"m": {"model": "org/tiny", "env": {"HF_HUB_CACHE": folders["model"]}}})
    assert [fault.check for fault in checked.faults] == ([] if has_it == "model" else ["model"])
    assert checked.models["m"].template_kind == "embedded"


@pytest.mark.thorough
def test_the_check_has_the_variables_of_the_model_and_no_secret_in_its_command_line(
    read, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_API_KEY", "sk-of-the-router")
    seen = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nopen({str(seen)!r}, 'w').write(repr((sys.orig_argv, dict(os.environ))))\n"
    )
    arguments = ("--hf-token", "hf_secret", "--idle-stop", "5m")
    assert read({"m": {"model": str(tiny_llama), "env": {"PYTHONPATH": str(tmp_path)}}}, *arguments).faults == ()
    command, environment = ast.literal_eval(seen.read_text())
    assert environment["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in command
    assert "sk-of-the-router" not in environment.values()


def test_without_a_preflight_only_the_words_are_checked(read):
    assert read({"m": {"model": "/nowhere"}}, "--preflight", "off").faults == ()
    checked = read({"m": {"model": "/nowhere"}}, "--preflight", "warn")
    assert checked.faults == ()
    assert [finding.severity for finding in checked.report(0.1).findings] == ["warning"]


def test_the_flags_of_vllm_are_checked_with_the_installed_one(read, monkeypatch):
    monkeypatch.syspath_prepend(FAKE)
    command = {"cmd": "vllm serve org/model --port ${PORT} --enforce-eager --served-model-name other"}
    modules = ["a=/b", '{"name": "c", "path": "/d"}', "no-path"]
    models = {"m": command, "n": {"model": "org/n", "engine": "vllm", "args": {"lora-modules": modules}}}
    checked = read(models, *OFFLINE, "--http-send-timeout", "5")  # vLLM has no such flag
    assert checked.faults == ()
    m, n = (checked.models[name] for name in "mn")
    assert (m.template_kind, n.template_kind) == ("vllm-eager", "vllm-compiled")
    assert (m.entry.engine, m.entry.aliases, n.entry.adapters) == ("vllm", ("other",), ("a", "c"))
    assert m.entry.arguments[:4] == ("org/model", "--preflight", "off", "--enforce-eager")


OFFLINE = ("--preflight", "off")


def test_names_of_words_are_the_last_part_of_a_folder(tiny_llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    options = options_of(tiny_llama, f"{other}/", *COMMON, "--idle-stop", "90s")
    assert list(options.entries) == [tiny_llama.name, "other"]
    assert [entry.ttl_s for entry in options.entries.values()] == [90, 90]
    assert (options.reload, options.path) == (None, None)
    assert options.entries["other"].arguments[0] == f"{other}/"


def test_links_to_one_folder_and_ids_of_the_hub_have_names_of_their_own(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in "ab":
        (tmp_path / "models" / name).symlink_to(tiny_llama)
    assert list(options_of("models/a", "models/b", *COMMON).entries) == ["a", "b"]
    assert list(options_of("org/a", "other/a", *OFFLINE, *COMMON).entries) == ["org/a", "other/a"]


def test_a_program_that_many_models_lack_is_one_fault(read):
    (fault,) = read({f"m{n}": {"cmd": "no-program --port ${PORT}"} for n in range(16)}).faults
    assert fault.key.startswith("models.m0, models.m1, ")
    assert fault.key.endswith(" and 8 more")
    assert "'no-program' of cmd is not found" in fault.text


@pytest.mark.parametrize("arguments", ["org/a org/a", "./x/a ../y/a"])
def test_two_models_of_one_name_are_a_usage_error(arguments):
    with pytest.raises(InputError, match=r"for names of your own, write a file for --models"):
        options_of(*arguments.split(), *COMMON)


def test_a_model_of_words_is_named_in_its_fault(invoke):
    done = invoke("serve", "/nowhere/a", "/nowhere/b", *COMMON)
    assert done.returncode == 3
    assert "Error: a: MODEL /nowhere/a is neither a folder nor" in done.stderr
    assert "\nb: MODEL /nowhere/b is neither a folder nor" in done.stderr


def test_the_file_is_read_again_and_checked(write, tiny_llama):
    model = {"model": str(tiny_llama)}
    options = options_of("--models", write(models={"m": model}), *COMMON)
    assert options.reload is not None
    assert options.reload() == options.entries
    write(models={"m": model | {"ttl": 5}, "n": model})
    changed = options.reload()
    assert changed != options.entries
    assert (changed["m"].ttl_s, options.find_model("n")) == (5, str(tiny_llama))
    write(models={"m": model | {"ttl": "x", "args": "--nonsense"}, "o": {"model": "/nowhere"}})
    with pytest.raises(ModelsFileError) as caught:
        options.reload()
    assert [fault.key for fault in caught.value.faults] == ["models.m.ttl", "models.o"]
    assert options.find_model("n") == str(tiny_llama)
    write(models={"n": model, "m": model})
    assert options.reload()["m"] == options.entries["m"]


@pytest.mark.parametrize(
    ("models", "code", "check"),
    [({"m": {}}, 0, None), ({"m": {"model": "/nowhere"}}, 3, "model"), ({"m": {"args": "--nonsense"}}, 2, "usage")],
    ids=["right", "no model", "wrong flag"],
)
def test_preflight_only_reports_on_all_models(models, code, check, write, invoke, tiny_llama):
    models = {name: {"model": str(tiny_llama)} | keys for name, keys in models.items()}
    file = write(models=models | {"n": {"model": str(tiny_llama)}}, peers={})
    done = invoke("serve", "--models", file, *COMMON, "--preflight-only", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (code, code == 0)
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert [finding["check"] for finding in errors] == ([check] if check else [])
    assert all(finding["message"].startswith(f"{file}:1: models.m: ") for finding in errors)
    assert any("peers: has no effect" in finding["message"] for finding in report["findings"])


@pytest.mark.parametrize("command", ["prefetch", "bake"])
def test_commands_for_one_model_say_so(command, invoke):
    done = invoke(command, "a", "b")
    assert (done.returncode, done.stderr) == (2, f"Error: vllm-cli {command} is for one model: name one of them.\n")


def test_models_that_did_not_change_are_not_checked_again(write, tiny_llama, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    models = {"m": {"model": str(tiny_llama)}, "n": {"model": str(copy)}}
    options = options_of("--models", write(models=models), *COMMON)
    assert options.reload is not None
    shutil.rmtree(copy)
    write(models={"o": {"model": str(tiny_llama)}} | models)
    assert list(options.reload()) == ["o", "m", "n"]
    write(models=models | {"n": {"model": str(copy), "ttl": 5}})
    with pytest.raises(ModelsFileError, match="is neither a folder"):
        options.reload()


def test_help_of_a_router_is_that_of_serve(invoke):
    done = invoke("serve", "a", "b", "--help")
    assert done.returncode == 0
    assert "--max-running" in done.stdout
