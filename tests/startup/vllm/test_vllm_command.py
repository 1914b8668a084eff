"""`serve --engine vllm` and a link `vllm` equal `vllm serve` in arguments, help, errors and exit codes."""

import importlib.util
import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from startup.processes.group_signals import GROUP_SIGNALS
from tests.startup.vllm.fake_start import CHECKED, ROOT, FakeStart, environment, rewrite, run_fake, variant
from tests.support.cli import run_cli
from tests.support.ports import free_port
from tests.support.waiting import disturbing, wait_until

pytestmark = pytest.mark.thorough

_SCRIPT = f"""#!{sys.executable}
import sys
from vllm_cli.__main__ import main
sys.exit(main())
"""


def _run_plain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs vLLM's own command."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments", ["--help=Frontend", "--nonsense --also_unknown=1 -x word", "--tensor-parallel-size"]
)
def test_help_and_errors_are_vllms_own(arguments, folder):
    given = ("--host", "127.0.0.1", "--port", str(free_port()), *arguments.split())
    ours, plain = run_fake(folder, *given), _run_plain(folder, "serve", *given)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize("error", ["ValueError", "BrokenPipeError"])
def test_an_error_that_vllm_raises_is_vllms_own_exit_in_a_plain_start(error, folder):
    arguments = ("--raises", error, "--host", "127.0.0.1", "--port", str(free_port()))
    ours = run_fake(folder, *arguments, env=environment(folder, VCLI_PLAIN_VLLM="1"))
    plain = _run_plain(folder, "serve", *arguments)
    assert ours.returncode == plain.returncode == 1
    assert "Traceback" in ours.stderr
    assert ours.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1] == f"{error}: as vLLM does"


def test_words_reach_vllm_in_order_with_a_time_for_the_drain(folder):
    arguments = ("model", "--served-model-name", "a", "b", "--startup-timeout=100", "--enforce-eager", "--", "-tp", "1")
    with FakeStart(folder, *arguments) as start:
        server = start.wait_ready().state()["server"]
    address = ["--host", "127.0.0.1", "--port", str(start.port)]
    assert Path(server["argv"][0]).name == "vllm"
    drain = ("--shutdown-timeout", "25")
    assert server["argv"][1:] == [
        "serve",
        "model",
        *drain,
        "--served-model-name",
        "a",
        "b",
        "--enforce-eager",
        "-tp",
        "1",
        *address,
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_serving_vllm_in_order(number, folder, model):
    with FakeStart(folder, model, "--enforce-eager", env=environment(folder, **CHECKED)) as start:
        start.wait_ready()
        assert start.terminate(number) == 0
        start.wait_all_gone()
        assert start.lines_with("Application shutdown complete")
        assert start.lines_with("Traceback", "Error", "WARNING") == []


def test_signal_reaches_a_main_thread_that_only_waits(folder):
    """The kernel may deliver a stopped process's signal to another thread, which runs no handler."""
    with FakeStart(folder, "--headless") as start:
        start.wait_logged("headless engine")
        others = []
        for task in Path(f"/proc/{start.process.pid}/task").iterdir():
            with suppress(OSError):  # a thread of the start has ended
                others += [] if task.name == str(start.process.pid) else [task.joinpath("status").read_text()]
        assert others
        assert [disturbing(status, GROUP_SIGNALS) for status in others] == [set()] * len(others)
        start.root.suspend()
        wait_until(lambda: start.root.status() == psutil.STATUS_STOPPED)
        start.process.send_signal(signal.SIGTERM)
        start.root.resume()
        assert start.process.wait(60) == 0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_a_clear_error(folder):
    done = run_fake(folder, "model", env=environment(folder, fake=None))
    assert done.returncode == 3
    message = "--engine vllm: vLLM is not installed in this environment (pip install vllm)"
    assert done.stderr == f"Error: {message}\nCode: VC-PACKAGE-MISSING\n"


@pytest.mark.parametrize("engine", ["vllm", "embedded"])
def test_the_help_is_that_of_the_engine(engine, folder):
    arguments = ("--engine", engine) if engine == "embedded" else ()
    done = run_cli("serve", *arguments, "--help=port", env=environment(folder), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (done.stdout == "fake vLLM's help about port\n") is (engine == "vllm")


def _run_link(folder: Path, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    script = folder / "vllm-cli"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    link = folder / "vllm"
    link.symlink_to(script)
    variables = environment(folder, **changes)
    variables["PATH"] = f"{folder}:{variables['PATH']}"  # a program that vLLM looks up by name is the link itself
    return subprocess.run(["vllm", *arguments], env=variables, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_serve_starts_through_the_launcher(folder):
    """The start accepts a flag that only the launcher has."""
    done = _run_link(folder, "serve", "--preflight-only", "--json", "--port", str(free_port()))
    assert "unrecognized arguments" not in done.stderr
    assert json.loads(done.stdout)["findings"] is not None


@pytest.mark.parametrize(
    "arguments", [pytest.param(["--version"], marks=pytest.mark.smoke), ["bench", "--help"]], ids=str
)
def test_other_commands_are_the_installed_vllms(arguments, folder):
    wanted = _run_plain(folder, *arguments)
    done = _run_link(folder, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (wanted.returncode, wanted.stdout, wanted.stderr)


@pytest.mark.parametrize(
    "arguments", [("run-batch", "--help"), ("run-batch", "--nonsense"), ("bench", "serve", "--nonsense")], ids=" ".join
)
def test_a_command_of_vllm_is_the_same_as_by_the_link(arguments, folder):
    by_link = _run_link(folder, *arguments)
    ours = run_cli(*arguments, env=environment(folder), cwd=ROOT)
    assert (ours.returncode, ours.stdout, ours.stderr) == (by_link.returncode, by_link.stdout, by_link.stderr)
    assert ours.returncode == (2 if "--nonsense" in arguments else 0)


def test_an_error_that_a_command_of_vllm_raises_is_vllms_own(folder):
    """Click would take this error for the end of a terminal's input."""
    fake = rewrite(variant(folder), '"""Does nothing."""', "raise EOFError('as vLLM does')")
    done = run_cli("run-batch", env=environment(folder, fake), cwd=ROOT)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "EOFError: as vLLM does")


def test_without_vllm_an_error_names_the_environment(folder):
    done = _run_link(folder, "bench", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "whose environment has no vLLM" in done.stderr
    assert done.stderr.splitlines()[1:] == ["Code: VC-PACKAGE-MISSING"]
