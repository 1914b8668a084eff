"""The arguments of `serve` in plans.yaml, and the settings or the error. Then what no entry can express."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

from envs.registry import LOGGING_LEVELS, variables
from envs.replacements import REPLACEMENTS
from router.arguments.router_arguments import read_several
from router.arguments.single_model import router_of_one
from server.terms.config import DTypeName, RendererConfig
from server.terms.limits import flag_of
from startup.arguments.embedded_line import parse_line, read_line
from startup.arguments.param_types import SIZE, spell_size
from startup.arguments.read_arguments import choose_engine, read_arguments
from startup.arguments.screening import show_notices
from startup.arguments.serve_command import parse_start, read_start, settings_with_notices
from startup.arguments.supported import CONFIG_FIELDS, GROUPS, SUPPORTED, VARIABLES
from startup.arguments.table import FLAGS, find_flag, split_flags
from startup.arguments.unsupported import IGNORED, REJECTED
from startup.settings.config_file import ConfigFile
from startup.settings.serve_arguments import LauncherLine
from startup.vllm_arguments import vllm_line
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_record import VllmRecord, flags_of_parser
from tests.startup.vllm import small_parser
from tests.support.data_files import read_yaml
from tests.support.vllm_flags import VLLM_NAMES, is_own
from vllm_cli.commands.bake import bake
from vllm_cli.commands.prefetch import prefetch
from vllm_cli.commands.serve import serve
from vllm_cli.main import main

_RECORDS = {"none": VllmRecord(), "recorded": VllmRecord(tuple(flags_of_parser(small_parser.build())))}


class WrittenPlan(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of `plans.yaml`, whose head explains the fields."""

    arguments: str | list[str]
    file: str | None = None
    record: list[str] = []
    plan: dict[str, Any] | None = None
    error: str | None = None
    notice: str | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.plan, self.error, self.notice)) != 1:
            raise ValueError(f"{self.arguments}: expect one of plan, error and notice")


def _written_plans() -> Iterator[Any]:
    """Yields arguments, what is recorded of vLLM, and the entry with what is expected of them."""
    for entry in read_yaml(Path(__file__).with_name("plans.yaml"), WrittenPlan):
        for record in entry.record or [""]:
            for arguments in [entry.arguments] if isinstance(entry.arguments, str) else entry.arguments:
                yield pytest.param(arguments, record, entry, id=f"{arguments} {record}".strip())


def _plan_of(arguments: list[str]) -> Any:
    read = settings_with_notices(read_arguments(LauncherLine(arguments)))
    if read.start is None:
        if read.read.topic is not None:
            return read
        several = read_several(read.read.of_router)
        show_notices(several.notices, several.config.log_format)
        return several
    if not read.start.is_behind_router:
        return read.start
    return router_of_one(read.read, read.start)


def _find(plan: Any, path: str) -> Any:
    """The value at a path such as `server.network.port`, in JSON. `kind` is the class of the plan."""
    if path == "kind":
        return type(plan).__name__
    found = plan
    for name in path.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return json.loads(json.dumps(asdict(found) if is_dataclass(found) else found, default=_as_json))


def _as_json(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


@pytest.mark.parametrize(("arguments", "record", "expected"), [*_written_plans()])
def test_arguments_become_a_plan(arguments, record, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = shlex.split(arguments)
    while given and re.match(r"[A-Z][A-Z_]+=", given[0]):
        monkeypatch.setenv(*given.pop(0).split("=", 1))
    if record:
        monkeypatch.setattr(vllm_line, "find_vllm", lambda: InstalledVllm("0.33.0", tmp_path))
        monkeypatch.setattr(vllm_line, "read_record", lambda _: _RECORDS[record])
    if expected.file is not None:
        Path("serve.yaml").write_text(expected.file)
    try:
        plan = _plan_of(given)
    except (click.ClickException, ValueError) as err:
        message = err.format_message() if isinstance(err, click.ClickException) else str(err)
        assert expected.error is not None, message
        assert expected.error in message
        assert (getattr(err, "exit_code", 2), "\n" in message) == (2, False)
        assert "has no effect" not in capsys.readouterr().err, "only the error is shown"
        return
    assert expected.error is None, "is not rejected"
    if expected.notice is not None:
        notices = capsys.readouterr().err
        assert notices.startswith(f"Notice: {expected.notice}") if expected.notice else not notices, notices
        return
    assert {path: _find(plan, path) for path in expected.plan} == expected.plan


_PAGES = [(Path(__file__).parents[3] / "docs" / name).read_text() for name in ("api.md", "flags.md")]
DOCS = "".join(page.partition("\n## Limits\n")[2] for page in _PAGES)


def test_every_example_in_the_help_is_a_valid_command_line():
    examples = [line.strip() for line in (serve.help or "").splitlines() if line.strip().startswith("vllm-cli serve")]
    assert len(examples) >= 4
    for example in examples:
        read = read_start(LauncherLine(shlex.split(example)[2:]))
        assert read.start or read_several(read.read.of_router)


@pytest.mark.parametrize("flag", GROUPS["Limits"], ids=lambda flag: flag.name)
def test_messages_and_docs_name_the_flag_of_the_field(flag):
    (path,) = flag.fields
    assert flag_of(path.removeprefix("limits.")) == flag.name
    assert f"`{flag.name} " in DOCS


@pytest.mark.parametrize("place", ["flag", "variable", "file", "nowhere"])
def test_notices_are_shown_in_the_format_of_the_log_and_the_start_continues(
    place, parse, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VCLI_XYZZY", "1")
    arguments: tuple[str, ...] = ()
    if place == "flag":
        arguments = ("--log-format", "json")
    elif place == "variable":
        monkeypatch.setenv("VCLI_LOG_FORMAT", "json")
    elif place == "file":
        (tmp_path / "config.yaml").write_text("log-format: json\n")
        arguments = ("--config", str(tmp_path / "config.yaml"))
    assert parse("m", "--enforce-eager", *arguments).model.model == "m"
    shown = capsys.readouterr().err.splitlines()
    messages = [
        "VCLI_XYZZY is not a variable of vllm-cli.",
        "--enforce-eager has no effect: torch and transformers choose the kernels.",
    ]
    if place == "nowhere":
        assert shown == [f"Notice: {message}" for message in messages]
        return
    lines = [json.loads(line) for line in shown]
    assert [line["message"] for line in lines] == messages
    assert {(line["level"], line["role"], line["phase"]) for line in lines} == {("WARNING", "api", "command_line")}


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_share_of_gpu_memory_has_no_effect_without_a_gpu(has_gpu, parse, tmp_path, capsys, monkeypatch):
    device = tmp_path / "device"
    if has_gpu:
        device.touch()
    monkeypatch.setattr("startup.imports.torch_environment._GPU_DEVICES", (device,))
    parse("m", "--gpu-memory-utilization", "0.5")
    notice = "--gpu-memory-utilization 0.5 has no effect: there is no GPU"
    assert (notice in capsys.readouterr().err) is not has_gpu


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_if_it_is_installed(is_there, engine, tmp_path, monkeypatch):
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(LauncherLine(["model"])) == engine


@pytest.mark.parametrize(
    ("content", "arguments", "is_cold"),
    [
        ("idle-stop: 1h", "", True),
        ("idle-sleep: 1h", "", True),
        ("restart: on-failure", "", True),
        ("idle-stop: 1h", "--preflight-only", False),
        ("idle-stop: 1h", "--idle-stop=", False),
        ("standby: off", "", True),
        ("standby: off", "--standby auto", False),
        ("standby: require", "", False),
        ("trust-remote-code: true", "", True),
        ("trust-remote-code: true", "--no-trust-remote-code", False),
        ("port: 1", "", False),
        ("standby: off", "--engine vllm", False),
    ],
)
def test_a_fork_decides_with_the_file_whether_it_may_serve(content, arguments, is_cold, tmp_path, monkeypatch):
    """Before anything of it is visible. The file of vLLM has only vLLM's settings."""
    monkeypatch.delenv("VCLI_STANDBY", raising=False)
    (tmp_path / "serve.yaml").write_text(content)
    given = LauncherLine(["m", "--config", str(tmp_path / "serve.yaml"), *arguments.split()])
    assert read_arguments(given).wants_cold_start == is_cold


def test_a_file_is_read_once(tmp_path):
    """It may be a pipe."""
    file, read = tmp_path / "serve.yaml", []
    file.write_text("port: 1")

    def read_file(path: str) -> ConfigFile:
        read.append(path)
        return ConfigFile.read(path)

    line = read_arguments(LauncherLine(["m", "--config", str(file), "--engine", "vllm"]), read_file=read_file).vllm
    assert line is not None
    file.write_text("port: 2")
    assert (line.port, line.read_again(_RECORDS["recorded"]).port, read) == (1, 1, [str(file)])


@pytest.mark.parametrize("value", ["-k", "--port", "--", "-", "a b", "", "=", "--api-key=x"])
def test_values_of_a_file_are_the_same_when_they_are_written_as_arguments(tmp_path, value):
    """A router writes a model's arguments for its server, and a supervisor those that it restarts."""
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps({"api-key": ["first", value], "served-model-name": ["a", "-b"], "seed": -1}))
    given = read_line(split_flags(["m", "--config", str(file)]))
    again = parse_line(split_flags(["m", *(argument for option in given.options for argument in option.arguments)]))
    assert [(each.name, [*each.values]) for each in again.options] == [
        (each.name, [*each.values]) for each in given.options
    ]
    assert again.others == ["m"]


def test_our_own_flags_begin_as_no_flag_of_vllm_does():
    """vLLM's parser accepts abbreviations of flags."""
    own = [flag.name for flag in FLAGS if is_own(flag)]
    assert [(name, theirs) for name in own for theirs in VLLM_NAMES if theirs.startswith(name)] == []


def test_every_spelling_belongs_to_one_flag_and_every_flag_is_of_one_kind():
    names = [name for flag in FLAGS for name in flag.options]
    assert len(names) == len(set(names))

    kinds = [set(SUPPORTED), *(set(flags) for table in (IGNORED, REJECTED) for flags in table.values())]
    assert sum(map(len, kinds)) == len(FLAGS)


def test_every_declared_flag_is_derived_once_and_every_field_can_be_set():
    declared = [field.metadata["flag"] for _, field, *_ in CONFIG_FIELDS if "flag" in field.metadata]
    without_field = {"--engine", "--config"}
    assert {flag.name for flag in SUPPORTED if not flag.fields} == without_field
    assert sorted(flag.name for flag in SUPPORTED) == sorted([*declared, *without_field])

    settable = {path for flag in SUPPORTED for path in flag.fields} | set(VARIABLES)
    assert {path for path, *_ in CONFIG_FIELDS} - settable == set()


def test_fields_filled_by_one_flag_or_by_a_variable_have_its_default():
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS}
    shared = {flag.name: {defaults[path] for path in flag.fields} for flag in SUPPORTED if len(flag.fields) > 1}
    assert shared == {"--model": {None}, "--trust-remote-code": {False}}
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS if field.default is not MISSING}
    assert {path: variable.default for path, variable in VARIABLES.items()}.items() <= defaults.items()


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("--dtype", get_args(DTypeName)),
        ("--chat-template-content-format", get_args(get_type_hints(RendererConfig)["chat_template_content_format"])),
        ("--log-level", LOGGING_LEVELS),
    ],
)
def test_choices_are_those_of_the_field(flag, choices):
    assert find_flag(flag).flag.choices == tuple(choices)


def test_every_supported_flag_has_a_sentence_of_help():
    assert [flag.name for flag in SUPPORTED if not re.fullmatch(r"\S.*\.", flag.help)] == []


def test_what_replaces_former_names_exists():
    names = {name for flag in FLAGS for name in flag.options} - {"--disable-log-requests"}  # again since 0.33
    of_other_commands = {"--vs", "--all", "--pid", "--max-inflight", "--hooks", "--env", "--quick"}
    of_vllms_bench = {
        *("--base-url", "--max-concurrency", "--num-prompts", "--backend", "--endpoint", "--save-result"),
        *("--random-input-len", "--random-output-len", "--random-prefix-len", "--ready-check-timeout-sec"),
    }
    for former, text in REPLACEMENTS.items():
        assert former not in names | {variable.name for variable in variables()}
        assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= names | of_other_commands | of_vllms_bench
        assert set(re.findall(r"[A-Z]+_[A-Z_]+", text)) <= {variable.name for variable in variables()}


def test_help_shows_kinds_of_models_and_the_supported_flags_in_groups_with_defaults_and_units(invoke):
    text = invoke("serve", "--help").stdout
    assert [title for title in GROUPS if f"\n{title}:\n" not in text] == []
    assert [flag.name for flag in SUPPORTED if flag.name.removeprefix("--") not in text] == []
    assert "--tensor-parallel-size" not in text
    text = " ".join(text.split())
    assert "a name on the Hugging Face hub or a folder" in text
    assert "Port to listen on. [8000]" in text
    assert "--[no-]enable-prefix-caching" in text
    assert "Largest body of a request without prompt_embeds. A larger body gets 413. [32MiB]" in text
    assert "How long running requests may take to finish after SIGTERM. [25]" in text


def test_defaults_are_those_of_the_fields_and_sizes_can_be_read_again():
    flags = {flag.name: flag for flag in SUPPORTED}
    assert (flags["--renderer-num-workers"].default, flags["--engine"].default) == (2, "auto")
    sizes = [flag.default for flag in SUPPORTED if flag.kind == "size" and flag.default]
    assert len(sizes) >= 2
    assert [SIZE.convert(spell_size(size), None, None) for size in sizes] == sizes


def test_help_may_follow_other_arguments_and_help_all_shows_every_flag(capsys, invoke):
    assert main(["serve", "model", "--config", "missing.yaml", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: vllm-cli serve [OPTIONS] [MODEL]")
    text = invoke("serve", "--help=all").stdout
    assert [flag.name for flag in FLAGS if flag.name.removeprefix("--") not in text] == []


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("max_num", ("--max-num-seqs", "--max-num-queued-reqs")),
        *(
            (topic, ("--max-model-len", "Most tokens of prompt and answer together"))
            for topic in ("max_model_len", "--max-model-len", "MAX-MODEL-LEN")
        ),
        ("tensor-parallel-size", ("Only with --engine vllm", "-tp")),
    ],
)
def test_help_with_a_word_shows_the_flags_that_contain_it(invoke, topic, shown):
    text = invoke("serve", f"--help={topic}").stdout
    assert [arguments for arguments in shown if arguments not in text] == []
    assert "--port" not in text


@pytest.mark.parametrize(
    ("num_bytes", "spelling"),
    [(0, "0"), (1000, "1000"), (1024, "1KiB"), (1536, "1536"), (3 << 29, "1536MiB"), (1 << 40, "1TiB")],
)
def test_sizes_are_spelt_in_the_largest_unit_that_divides_them(num_bytes, spelling):
    assert spell_size(num_bytes) == spelling


@pytest.mark.parametrize("command", [bake, prefetch], ids=lambda command: command.name)
def test_commands_with_options_of_their_own_take_the_flags_of_the_server_as_they_are(command, capsys):
    arguments = ["model", "-cc.cudagraph_mode=NONE", "--max_model_len", "8k"]
    assert command.make_context("", [*arguments, "--json"]).params["arguments"] == tuple(arguments)
    assert main([str(command.name), "--help=cudagraph"]) == 0
    assert "--max-cudagraph-capture-size" in capsys.readouterr().out


def test_all_faults_of_a_command_line_are_told_at_once():
    """As by the preflight of vLLM: unknown flags, unsupported ones, values, ranges of several sections."""
    arguments = "--foo 3 --dtype bf17 --port x --max-num-seqs 0 --max-num-batched-tokens 0 --shutdown-timeout -1"
    with pytest.raises(click.ClickException) as raised:
        parse_start(["m", "--engine", "embedded", *arguments.split(), "--enable-lora"], is_quiet=True)
    lines = raised.value.format_message().split("\nError: ")
    parts = ("--foo", "LoRA", "--dtype", "--port", "--max-num-seqs", "--max-num-batched-tokens", "--shutdown-timeout")
    assert [part for part in parts if not any(part in line for line in lines)] == []
    assert len(lines) == len(parts)


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_an_unknown_part_of_a_start_cannot_be_left_out(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VCLI_LEAVE_OUT", "nosuch,lean imports")
    parse_start(["m", "--engine", engine])
    notice = "Notice: VCLI_LEAVE_OUT: no hooks or parts of a start that can be left out: nosuch.\n"
    assert capsys.readouterr().err == notice


@pytest.mark.parametrize("name", ["late sources of Triton kernels", "preload profile", "saved models"])
def test_a_removed_part_of_a_start_that_is_left_out_only_causes_a_notice(name, monkeypatch, capsys):
    monkeypatch.setenv("VCLI_LEAVE_OUT", f"{name},drain")
    parse_start(["m", "--engine", "vllm"])
    assert f"can be left out: {name} (removed: {REPLACEMENTS[name]}).\n" in capsys.readouterr().err
