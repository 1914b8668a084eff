"""The record agrees with vLLM, arguments are read as vLLM reads them, and the same commands run."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from envs.environment import overlaid
from envs.replacements import REPLACEMENTS
from startup.arguments.table import FLAGS
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.preflight.arguments import FlagValueError, GivenStart, parse_value
from startup.vllm_arguments.preflight.surroundings import surroundings_findings
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord
from tests.support.peer_vllm import BIN, PYTHON, ROOT, ask_vllm
from tests.support.reading import Reading
from tests.support.vllm_flags import VLLM_NAMES
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.written_starts import written_starts
from vllm_cli.main import COMMANDS

pytestmark = pytest.mark.versions

VALUES: Final = (
    "1",
    "0",
    "-1",
    "1.5",
    "8k",
    "8K",
    "1.5k",
    "1.5K",
    "auto",
    "AUTO",
    "x",
    "",
    "None",
    "{}",
    '{"a": 1}',
    "[1]",
    "[]",
    "true",
    "1_0",
    " 1",
    "nan",
    "1e3",
    '{"a"',
    "80g",
    "-2",
    "null",
    '"text"',
    "a=b",
    "Half",
    "half",
    "deep-gemm",
    "tcp://10.0.0.1:80",
)


JSON_VALUES: Final = (
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    4,
    7,
    -1,
    300,
    1 << 70,
    0.0,
    1.0,
    1.5,
    1e300,
    "",
    "x",
    "0",
    "1",
    "3",
    " 3 ",
    "3.0",
    "1_0",
    "1.5",
    "1e3",
    "true",
    "Off",
    "auto",
    "AUTO",
    "none",
    "None",
    "inf",
    "nan",
    "9" * 400,
    "a,b",
    "re:(",
    [],
    [2, 0],
    ["x"],
    ["1"],
    [1],
    [None],
    [[]],
    {},
    {"foo": 1},
    {"a": "x"},
    {"a": 1},
    "{}",
    "[]",
)
"""Values for every field of vLLM's JSON flags."""
_SCRIPT: Final = Path(__file__).parent / "preflight" / "vllm_parser.py"


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ask_vllm(
        _SCRIPT,
        {"lines": [], "texts": VALUES, "values": JSON_VALUES},
        tmp_path_factory.mktemp("record"),
        timeout_s=1200,
    )


@pytest.fixture(scope="module")
def record(answer: Any) -> VllmRecord:
    return msgspec.convert(answer["record"], VllmRecord)


def _read(lines: list[list[str]], folder: Path) -> list[Reading]:
    answer = ask_vllm(_SCRIPT, {"lines": lines}, folder, timeout_s=1200)
    return msgspec.convert(answer["readings"], list[Reading])


def test_arguments_of_starts_are_read_as_vllm_reads_them(tmp_path):
    """`tests/startup/vllm_arguments/test_vllm_line.py` has arguments of any form."""
    folders = StartFolders(tmp_path)
    lines = [[folders.fill(argument) for argument in start.arguments] for start in written_starts() if start.arguments]
    readings = _read(lines, tmp_path)
    wrong = [reading.differences or reading.is_accepted and reading.faults for reading in readings]
    assert [pair for pair in zip(lines, wrong, strict=True) if pair[1]] == []
    assert 50 < sum(reading.is_accepted for reading in readings) < len(lines) - 20


def test_each_value_that_vllm_accepts_passes_and_of_plain_values_nothing_else(record, tmp_path):
    flags = {option: flag for flag in record.flags if flag.nargs != 0 for option in flag.options}
    lines = [["m", f"{option}={value}"] for option in flags for value in VALUES]
    pairs = list(zip(lines, _read(lines, tmp_path), strict=True))
    assert [pair for pair in pairs if pair[1].is_accepted and (pair[1].faults or pair[1].differences)] == []
    unchecked = ("unknown", "object")
    passed = {arguments[1].partition("=")[0] for arguments, found in pairs if not (found.is_accepted or found.faults)}
    assert {option for option in passed if flags[option].kind not in unchecked} <= {"--mm-processor-device"}
    assert len({flag.name for flag in flags.values() if flag.kind == "unknown"}) <= 8
    assert len(flags) > 200


def _named(record: VllmRecord, variables: dict[str, str]) -> set[str]:
    """The variables whose values the preflight reports."""
    start = GivenStart(InstalledVllm("0.32.0+cpu", Path()), VllmLine.of(["m"], record))
    with overlaid(variables):
        findings = [*surroundings_findings(start)]
    return {re.split("[ :=]", finding.message)[0] for finding in findings} & {*variables}


def test_each_value_that_is_no_choice_of_a_variable_is_named_and_no_other_value(answer, record):
    names = {flag.name for flag in record.variables}
    refused: dict[str, set[str]] = {}
    for name, text in answer["refused"]:
        if name in names:
            refused.setdefault(text, set()).add(name)
    assert {text: _named(record, dict.fromkeys(names, text)) for text in refused} == refused
    assert len(refused["x"]) > 15


def test_values_in_json_flags_are_rejected_only_if_vllm_rejects_them_and_mostly_then(answer, record):
    flags = {flag.name: flag for flag in record.flags}
    wrong, passed, num_refused = [], [], 0
    for name, text, is_accepted in answer["objects"]:
        try:
            parse_value(flags[name], text)
        except FlagValueError as err:
            num_refused += 1
            wrong += [(name, text, str(err))] if is_accepted else []
        else:
            passed += [] if is_accepted else [(name, text)]
    assert wrong == []
    assert {("--compilation-config", '{"mode": "3"}'), ("--pooler-config", '{"foo": 1}')}.isdisjoint(passed)
    assert len(passed) < num_refused / 10, "the others break rules between fields"


def test_variables_of_vllms_log(record, tmp_path):
    contents = {"none": "{}", "whole": '{"version": 1}', "newer": '{"version": 2}', "list": "[1]", "cut": "[1"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    files = [str(tmp_path / name) for name in contents]
    levels = ("", "10", "warn", " info", "x", "NOTSET", "fatal")
    logs = [
        *({"VLLM_LOGGING_LEVEL": text, **other} for text in levels for other in ({}, {"VLLM_CONFIGURE_LOGGING": "1"})),
        *({"VLLM_LOGGING_LEVEL": "x", "VLLM_CONFIGURE_LOGGING": text} for text in ("0", "00")),
        *({"VLLM_LOGGING_STREAM": text} for text in ("ext://no.x", "cfg://x", "ext://sys.stderr", "x", "")),
        *({"VLLM_LOGGING_CONFIG_PATH": text} for text in (*files, str(tmp_path), "/missing", "")),
        {"VLLM_LOGGING_CONFIG_PATH": files[1], "VLLM_CONFIGURE_LOGGING": "0"},
        {"VLLM_LOGGING_CONFIG_PATH": "", "VLLM_CONFIGURE_LOGGING": "0"},
        {"VLLM_LOGGING_CONFIG_PATH": files[1], "VLLM_LOGGING_LEVEL": "x", "VLLM_LOGGING_STREAM": "ext://no.x"},
    ]
    can_log = ask_vllm(_SCRIPT, {"lines": [], "logs": logs}, tmp_path, timeout_s=1200)["logs"]
    assert [not _named(record, variables) for variables in logs] == can_log


def test_registered_names(record):
    examples = {
        "--tool-call-parser": "hermes",
        "--reasoning-parser": "qwen3",
        "--quantization": "fp8",
        "--load-format": "dummy",
        "--attention-backend": "FLASH_ATTN",
        "architectures": "LlamaForCausalLM",
    }
    assert [flag for flag, name in examples.items() if name not in record.names.get(flag, ())] == []


def test_the_table_of_flags_has_all_of_vllms_and_the_same_switches(record):
    names = {name for flag in record.flags for name in (*flag.names, *flag.opposites)}
    assert names - VLLM_NAMES == set()
    switches = {flag.name for flag in FLAGS if flag.nargs == 0}
    assert {flag.name for flag in record.flags if flag.opposites} - switches == set()


_LINK: Final = "import sys; sys.argv[0] = 'vllm'; from vllm_cli.__main__ import main; sys.exit(main())"
_LINE: Final = r"^(\(\S+ pid=\d+\) )?(INFO|WARNING|ERROR|DEBUG) \S+ \S+ .*\n"
"""Matches log lines. They have a time and a process id, and depend on earlier imports."""


def _run(*command: object) -> tuple[int, str, str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "110"}
    done = subprocess.run([*map(str, command)], env=variables, capture_output=True, text=True, timeout=600, cwd=ROOT)
    return done.returncode, re.sub(_LINE, "", done.stdout, flags=re.M), re.sub(_LINE, "", done.stderr, flags=re.M)


def _names(*arguments: str) -> set[str]:
    """The commands that vLLM's own help lists."""
    code, out, _ = _run(BIN / "vllm", *arguments, "--help")
    assert code == 0
    found = re.search(r"\{([a-z,-]+)\}", out)
    assert found is not None, out
    return set(found[1].split(","))


def test_every_command_of_vllm_has_a_name_here_or_is_named_by_an_error():
    assert _names() - {entry.name for entry in COMMANDS} - REPLACEMENTS.keys() == set()
    assert {f"bench {name}" for name in _names("bench") - {"serve", "startup"}} - REPLACEMENTS.keys() == set()


@pytest.mark.parametrize(
    "arguments",
    [("launch",), ("snapshot", "nonsense"), ("bench", "latency", "--help"), ("run-batch", "-i", "/no", "-o", "/no")],
    ids=" ".join,
)
def test_commands_run_by_the_link(arguments: tuple[str, ...]):
    """`tests/startup/vllm/test_vllm_command.py` shows that `vllm-cli run-batch` is the same as the link."""
    plain, link = _run(BIN / "vllm", *arguments), _run(PYTHON, "-c", _LINK, *arguments)
    assert link[:2] == plain[:2]
    assert link[2].splitlines()[-1:] == plain[2].splitlines()[-1:]
