"""The console script: its imports, exit codes, Ctrl-C, and the order in which it finds modules."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.support.cli import run_cli, run_python
from tests.support.marks import thorough_but_for
from tools.generated_docs import walk_commands
from vllm_cli.main import COMMANDS, FIRST_COMMANDS, cli, load_command, main
from vllm_cli.version import VERSION

ROOT = Path(__file__).parents[2]
OURS = {"vllm_cli", "router", "startup", "server", "base", "envs", "click"}
SLOW_MODULES = {
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "email",
    "http.client",
    "importlib.metadata",
    "logging",
    "multiprocessing",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "unittest",
    "urllib.request",
    "xml",
    "zipfile",
}
"""Modules of the standard library whose import would delay the help."""

_REPORT = """
import json, sys
before = set(sys.modules)
from vllm_cli.main import main
# For each of several calls: arguments, exit code, and all modules loaded afterwards.
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    loaded = sorted(set(sys.modules) - before)
    print("\\nLOADED", json.dumps([arguments, code, loaded]))
"""


FIRST_CALLS = [(("--version",), 0), (("--help",), 0), (("serve", "--nonsense"), 2)]
LIGHT_CALLS = [
    *FIRST_CALLS,
    ((), 2),
    (("--nonsense",), 2),
    (("nonsense",), 2),
    *(((entry.name, "--help"), 2 if "of_vllm" in entry.target else 0) for entry in COMMANDS),
    (("bench", "startup", "--help"), 0),
    (("bench", "startup", "--rounds", "0"), 2),
    (("bench", "serve", "--help"), 2),
    (("serve", "--help=all"), 0),
    (("serve", "--help=port"), 0),
    (("serve", "--port", "abc"), 2),
    (("serve", "--port", "99999"), 2),
    (("serve", "--port", "1", "model", "another"), 2),
    (("serve", "model", "another", "--max-running", "0"), 2),
    (("serve", "model", "--tensor-parallel-size", "2"), 2),
    (("serve", "--engine", "vllm"), 3),
    (("serve", "--config", "missing.yaml"), 2),
]


@pytest.mark.thorough
def test_help_and_usage_errors_import_only_click_and_the_first_ones_no_slow_module(tmp_path):
    """Help, version and usage errors import neither a command nor a slow module of the standard library."""
    known = OURS | set(sys.stdlib_module_names)
    calls = json.dumps([arguments for arguments, _ in LIGHT_CALLS])
    done = run_python(_REPORT, calls, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    assert len(found) == len(LIGHT_CALLS), done.stdout + done.stderr
    for (arguments, expected), (_, code, loaded) in zip(LIGHT_CALLS, found, strict=True):
        assert (arguments, code, {name.partition(".")[0] for name in loaded} - known) == (arguments, expected, set())
    _, _, loaded = found[len(FIRST_CALLS) - 1]
    assert "vllm_cli.main" in loaded
    assert SLOW_MODULES & set(loaded) == set()
    assert [
        name for name in loaded if ".commands" in name and not name.endswith(("commands", "serve", "of_vllm"))
    ] == []


def test_every_command_of_the_table_exists_under_its_name_and_has_help():
    commands = [load_command(entry) for entry in COMMANDS]
    assert [command.name for command in commands] == [entry.name for entry in COMMANDS]
    assert all(command.get_short_help_str() for command in commands)


def test_help_shows_a_newcomers_commands_first(capsys):
    assert main(["--help"]) == 0
    sections = capsys.readouterr().out.partition("\nCommands:\n")[2].split("\n\nFurther commands:\n")
    shown = [[line.split()[0] for line in section.splitlines() if line[2:3].strip()] for section in sections]
    further = COMMANDS[len(FIRST_COMMANDS) :]
    assert shown == [[entry.name for entry in FIRST_COMMANDS], [entry.name for entry in further]]


@pytest.mark.parametrize("command", [pytest.param(command, id=path) for path, command in walk_commands()])
def test_a_placeholder_in_the_help_is_no_name_of_the_program(command):
    ctx = click.Context(command)
    assert [shown for each in command.params if "_" in (shown := each.make_metavar(ctx))] == []


def test_the_versions_of_this_program_and_of_an_installed_vllm_are_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "vllm" / "_version.py").write_text('__version__ = version = "0.33.1"')
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"vllm-cli {VERSION}", "vLLM 0.33.1"]


@pytest.mark.parametrize("path", ["serve", "chat", "bench startup"])
def test_the_help_of_a_command_that_vllm_has_too_names_vllms(path, invoke):
    text = " ".join(invoke(*path.split(), "--help").stdout.split())
    assert f"This is vllm-cli's own command. `vllm {path}` is the installed vLLM's." in text


@pytest.mark.parametrize("path", ["run-batch", "bench serve"])
def test_a_command_of_vllm_without_vllm_is_one_sentence_and_exit_code_2(path, invoke):
    done = invoke(*path.split(), "-i", "x", "--endpoint", "/v1/completions")
    message = f"Error: `{path}` is a command of vLLM, which is not installed here (pip install vllm).\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("srve", "(did you mean 'serve'?)"),
        ("serve --dtpe auto", "(did you mean '--dtype'?)"),
        ("chat --ulr x", "(did you mean '--url'?)"),
        ("bench startup --modl x", "(did you mean '--model'?)"),
        ("serve --help=dtipe", "(did you mean 'dtype'?)"),
        ("serve --help=xyzzy", "No flag has 'xyzzy' in its name"),
        ("doctor --engine embedded --dtpe half", "--dtype"),
        ("explain VC-PORT-USED", "(did you mean 'VC-PORT-IN-USE'?)"),
        ("wait ftp://x", "is not an address"),
        ("wait http://x:99999", "has no port between 0 and 65535"),
        ("wait http://x --port 1", "Give URL or --port, not both"),
        ("wait --uds /x --port 1", "Give --uds or --host and --port"),
        ("wait --path health", "--path must begin with /"),
        ("wait --timeout 0", "--timeout"),
        (f"wait --ssl-certfile {__file__}", "is not a certificate"),
        ("bench startup --cmd 'y", "--cmd"),
        ("bench startup --state lukewarm", "lukewarm"),
        ("bench startup --cmd x --json no-such-folder/x.json", "is not a file in an existing folder"),
        *(
            (f"standby {arguments}", arguments.split()[0])
            for arguments in ("--for nonsense", "--for embedded,", "nonsense")
        ),
        *((f"standby {arguments}", arguments.split()[0]) for arguments in ("--for embedded,tgi", "--idle-exit 0")),
        *((f"standby {arguments}", arguments.split()[0]) for arguments in ("--idle-exit soon", "--max-memory much")),
        *(
            (f"caches {arguments}", "Error: ")
            for arguments in ("prune", "prune --older yesterday", "prune --keep some")
        ),
        ("caches --json prune --keep 0", "Error: "),
        *(
            (f"doctor --hooks {arguments}", "Error: ")
            for arguments in ("--vllm /absent", "--unknown", "MODEL", "--env")
        ),
        (f"doctor --hooks --vllm {ROOT / 'docs'}", "Error: "),
        ("bench serve --cmd x", "No such option '--cmd' (removed: start the server, then give --base-url)"),
        ("bench serve --model m --endpoint=chat", "'--endpoint chat' (removed: give --backend openai-chat"),
        ("preload show", "No such command 'preload' (removed: `vllm preload`, and `vllm-cli doctor --hooks`"),
        ("check-hooks --json", "No such command 'check-hooks' (removed: `vllm-cli doctor --hooks`)."),
        ("collect-env", "No such command 'collect-env' (removed: `vllm-cli doctor`, or"),
        ("complete -q Hi", "No such command 'complete' (removed: `vllm-cli chat --quick`, or"),
        ("env", "No such command 'env' (removed: `vllm-cli doctor --env`)."),
        ("timeline report.json", "No such command 'timeline' (removed: the log and"),
        ("launch render", "No such command 'launch' (removed: `vllm launch`)."),
        ("bench latency", "No such command 'latency' (removed: `vllm bench latency`)."),
        ("bench startup --evict f", "No such option: --evict (removed: evict the files before, with `vmtouch -e`)"),
        ("bench nonsense", "No such command 'nonsense'."),
        ("prefetch --threads 0", "0 is not in the range 1<=x<=64"),
        ("serve --engine embedded --omni --usp 2", "requests models of the package vllm-omni. Use --engine vllm."),
    ],
)
def test_former_and_wrong_arguments_name_what_to_write(arguments, message, capsys):
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err


def test_all_errors_of_the_environment_are_printed_with_exit_code_2(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "frok")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "maybe")
    assert main(["serve"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["Error:", "VLLM_WORKER_MULTIPROC_METHOD"],
        ["Error:", "VLLM_SERVER_DEV_MODE"],
        ["Code:", "VC-USAGE"],
    ]
    assert "did you mean 'fork'?" in lines[0]


def test_ctrl_c_during_the_creation_of_a_class_is_exit_code_130_and_other_errors_are_not(monkeypatch):
    class Member:
        def __set_name__(self, owner: type, name: str) -> None:
            raise error

    @click.command("interrupted")
    def interrupted() -> None:
        type("Made", (), {"member": Member()})

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: interrupted)
    error: BaseException = KeyboardInterrupt()
    assert main(["caches"]) == 130
    error = ValueError()
    with pytest.raises((RuntimeError, ValueError)):
        main(["caches"])


_UNCAUGHT = """
import sys, click
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
from vllm_cli.main import cli, main

@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def broken(arguments):
    configure_logging(LogOptions(level="INFO", format="json" if "json" in arguments else "text"), role="api")
    raise KeyError("x")

cli.get_command = lambda ctx, name: broken
sys.exit(main())
"""


UNCAUGHT = {
    "serve": "VC-VLLM-CLI",
    "serve --engine vllm": None,
    "serve --log-format json": "VC-VLLM-CLI",
    "caches": None,
}
"""The arguments of a command that fails -> its code. An error of vLLM has none."""


@pytest.mark.parametrize("given", thorough_but_for(UNCAUGHT, "serve --log-format json"))
def test_an_error_that_nobody_has_caught_ends_a_start_with_a_code(given):
    arguments, code = given.split(), UNCAUGHT[given]
    done = run_python(_UNCAUGHT, *arguments, environment={**os.environ, "VCLI_ENGINE": "embedded"})
    assert done.returncode == 1
    assert "KeyError: 'x'" in done.stderr
    if "json" in arguments:
        records = [json.loads(line) for line in done.stderr.splitlines()]
        assert [record.get("code") for record in records] == [None, code]
        assert "Traceback" in records[0]["exception"]
    elif code:
        assert done.stderr.endswith(f"Error: KeyError: 'x'\nCode: {code}\n")
    else:
        assert done.stderr.endswith("KeyError: 'x'\n")
        assert "Error: " not in done.stderr.replace("KeyError: ", "")


def test_a_closed_pipe_causes_no_traceback():
    done = run_cli("doctor", "--env", launcher=("sh", "-c", '"$@" | true', "sh"))
    assert "Traceback" not in done.stderr


_HOOK = """
import atexit, os, signal, sys

pid, point, count = os.getpid(), int(os.environ.pop("POINT")), None

def hook(event, args):
    global count
    if os.getpid() != pid:
        return
    if count is not None:
        count += 1
        if count == point:
            os.kill(pid, signal.SIGINT)
    elif event == "exec" and getattr(args[0], "co_filename", "").endswith("vllm_cli/__main__.py"):
        count = 0

sys.addaudithook(hook)
if point == 0:
    atexit.register(lambda: print(count, file=sys.stderr))
"""


@pytest.fixture
def run_to(tmp_path: Path):
    """A function that runs a command with a SIGINT at this event. 0: no SIGINT, and events are counted."""
    (tmp_path / "sitecustomize.py").write_text(_HOOK)

    def run(point: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).with_name("vllm-cli")), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "POINT": str(point)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


def _assert_interrupted(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode in (130, -signal.SIGINT), done
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("point", [1, 3, 9, 27])
def test_at_the_beginning(point, run_to):
    _assert_interrupted(run_to(point, "--version"))


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", [("doctor", "--env"), ("serve", "MODEL", "--preflight-only")], ids=" ".join)
def test_at_any_point(arguments, run_to, tiny_llama):
    arguments = tuple(argument.replace("MODEL", str(tiny_llama)) for argument in arguments)
    whole = run_to(0, *arguments)
    assert whole.returncode == 0, whole.stderr
    num_events = int(whole.stderr.splitlines()[-1])
    for point in range(1, num_events * 9 // 10, num_events // 12):  # their number varies
        _assert_interrupted(run_to(point, *arguments))
