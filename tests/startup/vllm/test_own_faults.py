"""If vLLM differs, or something breaks that plain vLLM does not use, a start has at most one warning."""

import os
import shlex

import pytest

from startup.vllm.launch.plain_start import plain_start_reason
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine
from tests.startup.vllm.fake_start import (
    CHECKED,
    ROOT,
    FakeStart,
    broken_environment,
    environment,
    prepend,
    rewrite,
    run_fake,
    variant,
    without_forks,
)
from tests.support.cli import run_cli
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

_PLAIN = "starts again without preloading"


@pytest.mark.parametrize(
    "fault",
    [
        *("execution", "fork", "protocol", "answers", "state of children", "step of the launcher"),
        *(f"{end} with a request" for end in ("killed", "stopped")),
        *(f"{end} in its imports" for end in ("killed", "exits", "stopped", "raises")),
        *("crashes in its forks", "patch in engine", "patch in worker", "patch in API server"),
    ],
)
def test_a_start_that_only_our_machinery_breaks_is_ready_with_one_line(fault, folder):
    with FakeStart(folder, env=broken_environment(folder, fault)) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "spawn"
        assert start.complete("A text") == "A text was read by worker 0"
        (warning,) = start.lines_with("WARNING")
        assert _PLAIN in warning or "as a new program instead of forked" in warning
        assert start.terminate() == 0


@pytest.mark.parametrize("fault", ["patch in engine", "fork"])
def test_several_api_servers_are_started_again(fault, folder):
    """As new programs, API servers could not report that they serve."""
    with FakeStart(folder, "--api-server-count", "2", env=broken_environment(folder, fault)) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        assert _PLAIN in start.lines_with("WARNING")[-1]


def test_a_node_without_an_api_server_is_started_again(folder):
    with FakeStart(folder, "--headless", env=broken_environment(folder, "patch in worker")) as start:
        start.wait_logged(_PLAIN)
        start.wait_logged("headless engine")
        assert len(start.lines_with("WARNING")) == 1


@pytest.mark.parametrize("fault", ["system calls", "proc"])
def test_what_a_sandbox_lacks_costs_no_start(fault, folder):
    with FakeStart(folder, env=broken_environment(folder, fault)) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        assert len(start.lines_with("WARNING")) <= 1


def test_the_plain_start_is_what_the_user_has_started(folder):
    given = broken_environment(folder, "patch in worker", HF_HUB_OFFLINE="0")
    with FakeStart(folder, "-tp", "2", "--log-format", "json", env=given) as start:
        assert start.wait_ready().state()["server"]["pid"] == start.process.pid
        assert start.root.environ() == {**given, "VCLI_PLAIN_VLLM": "on"}
        wait_until(lambda: not any(is_gone(child.pid) for child in start.root.children()))  # no zombie stays
        assert start.responders() == start.forkservers() == []


def test_later_starts_are_plain_at_once_until_it_is_enabled_again(folder):
    given = broken_environment(folder, "patch in engine")
    expected = (_PLAIN, "starts without preloading: an earlier start with preloading failed (KeyError")
    for arguments, text in zip(((), ("--max-num-seqs", "8")), expected, strict=True):
        with FakeStart(folder, *arguments, env=given) as start:
            start.wait_ready()
            (warning,) = start.lines_with("WARNING")
            assert text in warning
            assert start.log.count("\n  Code: VC-PLAIN-START\n") == 1
            assert " UTC on, or after `vllm-cli caches prune --plain-starts`" in warning
            assert start.terminate() == 0
    with FakeStart(folder, "-tp", "2", env={**given, "BROKEN": ""}) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "forkserver", "another kind of start"
    shown = run_cli("caches", "prune", "--plain-starts", env=given, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    with FakeStart(folder, env={**given, "BROKEN": ""}) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "forkserver"
        assert start.lines_with("WARNING") == []


@pytest.mark.parametrize(
    "fault", ["full disk in engine", "full disk in worker", "full disk in API server", "no memory in launcher"]
)
def test_what_the_machine_refuses_to_our_code_is_not_remembered(fault, folder):
    with FakeStart(folder, env=broken_environment(folder, fault)) as start:
        start.wait_ready()
        (warning,) = start.lines_with("WARNING")
        assert _PLAIN in warning
        assert " UTC on" not in warning
    assert not list(folder.glob("cache/vllm_cli/plain/*"))


def test_the_next_start_preloads_if_the_plain_one_fails_as_well(folder):
    given = broken_environment(folder, "patch in API server", FAKE_VLLM_CRASH="engine:no memory")
    with FakeStart(folder, env=given) as start:
        assert start.process.wait(60) == 1
        assert len(start.lines_with(_PLAIN)) == 1
    with FakeStart(folder, env={**given, "BROKEN": "", "FAKE_VLLM_CRASH": ""}) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == "forkserver"


def test_a_warm_start_that_fails_is_repeated_plainly(folder):
    flags = {name: value for name, value in os.environ.items() if name == "PYTHONDONTWRITEBYTECODE"}
    given = broken_environment(folder, "patch in API server", **flags)
    variables = {name: given[name] for name in ("PYTHONPATH", "VLLM_CACHE_ROOT", "TMPDIR", "HF_ENDPOINT", "BROKEN")}
    with (
        StandbyProcess("--for", "vllm-eager", environment=variables) as standby,
        FakeStart(folder, "--enforce-eager", port=0, env={**given, **standby.environment}) as start,
    ):
        start.wait_logged(_PLAIN)
        start.wait(lambda: start.root.cmdline()[-2:-1] == ["--port"] and start.root.cmdline()[-1] != "0")
        start.port = int(start.root.cmdline()[-1])
        state = start.wait_ready().state()
        assert len(start.lines_with("warm start: forked from")) == 1
        assert state["server"]["pid"] == start.process.pid
        assert len(start.lines_with(_PLAIN)) == 1
        assert start.terminate() == 0


_REFUSES_THE_FORKSERVER = """
import os
from pathlib import Path
from typing import Final
programs = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (os.getpid(), os.getppid())]
if [b"processes.forkserver" in program for program in programs] == [True, False]:
    raise RuntimeError("cannot be imported here")
"""


def _serves(start: FakeStart) -> bool:
    return start.complete("A text") == "A text was read by worker 0"


_RUST = "VLLM_USE_RUST_FRONTEND=1 "


@pytest.mark.parametrize(
    ("version", "start", "reason", "is_requested"),
    [
        ("0.27.1+cpu", "model", "it is older than 0.29", False),
        ("no version", "model", "it is older than 0.29", False),
        ("0.32.0", "model --numa-bind", "--numa-bind needs new programs for its processes", False),
        ("0.32.0", "TORCHELASTIC_RUN_ID=1 model", "a launcher starts one process per rank (TORCHELASTIC", True),
        (
            "0.32.0",
            "VCLI_PLAIN_VLLM=1 model",
            "VCLI_PLAIN_VLLM is set",
            True,
        ),
        ("0.32.0", "model --omni", "vllm-omni runs this command", True),
        ("0.30.0", f"{_RUST} model -dpm", "its Rust frontend (VLLM_USE_RUST_FRONTEND) opens the port itself", False),
        ("0.33.0", f"{_RUST} model --headless", None, False),
        ("0.29.0", f"{_RUST} model", None, False),
    ],
)
def test_the_reason_of_a_plain_start(version, start, reason, is_requested, folder, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(folder))
    arguments = shlex.split(start)
    while "=" in arguments[0]:
        name, _, value = arguments.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    found = plain_start_reason(InstalledVllm(version, folder), VllmLine.of(arguments))
    assert (found is None) == (reason is None)
    assert found is None or (found.text.startswith(reason), found.is_requested) == (True, is_requested)


@pytest.mark.parametrize(
    "arguments", [("org/image", "--omni", "--own-flag", "1"), ("--omni", "org/image")], ids=" ".join
)
def test_a_command_of_vllm_omni_reaches_it_unchanged_and_without_a_preflight(arguments, folder):
    delegates = (
        'import sys\ndef main() -> None:\n    if "--omni" in sys.argv:\n        return print("omni:", sys.argv[1:])\n'
    )
    fake = rewrite(variant(folder), "def main() -> None:\n", delegates)
    done = run_fake(folder, *arguments, env=environment(folder, fake))
    assert (done.returncode, done.stdout) == (0, f"omni: {['serve', *arguments]}\n")
    (line,) = done.stderr.splitlines()
    assert line.endswith("plain start: vLLM 0.32.0+cpu starts without preloading: vllm-omni runs this command")


@pytest.mark.parametrize(("version", "is_asked_for"), [("0.27.1+cpu", False), ("0.32.0", True)])
def test_a_plain_start_has_at_most_one_warning(version, is_asked_for, folder, model):
    variables = {"VCLI_PLAIN_VLLM": "1"} if is_asked_for else {}
    fake = variant(folder, _version=f'__version__ = "{version}"\n')
    env = environment(folder, fake, VLLM_WORKER_MULTIPROC_METHOD="spawn", **CHECKED, **variables)
    with FakeStart(folder, model, "--enforce-eager", env=env) as start:
        state = start.wait_ready().state()
        assert start.forkservers() == []
        assert start.kind_of(state["engine"]["pid"]) == "spawn"
        assert _serves(start)
        warnings = start.lines_with("WARNING")
        assert len(warnings) == (not is_asked_for)
        assert is_asked_for or f"vLLM {version} starts without preloading: it is older than 0.29" in warnings[0]


_FORKED = {
    "CUDA": "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use 'spawn'",
    "XPU": "Cannot re-initialize XPU in forked subprocess. To use XPU with multiprocessing, you must use 'spawn'",
    "HIP": "HIP error: initialization error",
}


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (
            lambda folder: rewrite(variant(folder), "instrument", "mark_as_worth_timing"),
            "forkserver",
            "starts without some speed-ups, since these hooks do not fit: 'spans'",
        ),
        (
            lambda folder: rewrite(variant(folder), "    sock.bind(", "    _, sock = None, sock; sock.bind("),
            "spawn",
            "starts without preloading: the hook 'port' does not fit this version",
        ),
        *(
            (
                lambda folder, text=text: without_forks(folder, "0.32.0+cpu", f"raise RuntimeError({text!r})"),
                "spawn",
                "starts again without preloading",
            )
            for text in _FORKED.values()
        ),
    ],
    ids=["other tracing function", "port bound otherwise", *_FORKED],
)
def test_vllm_that_differs_or_cannot_be_forked_serves_with_one_warning(change, kind, told, folder):
    with FakeStart(folder, env=environment(folder, change(folder))) as start:
        assert start.kind_of(start.wait_ready().state()["engine"]["pid"]) == kind
        assert _serves(start)
        (warning,) = start.lines_with("WARNING")
        assert told in warning
        assert ("\n  Code: VC-PLAIN-START\n" in start.log) == (kind == "spawn")
        assert kind == "spawn" or start.lines_with("Traceback") == []


def test_a_tested_vllm_that_fails_exits_with_its_own_error(folder):
    with FakeStart(folder, env=environment(folder, without_forks(folder, "0.32.0+cpu"))) as start:
        assert start.process.wait(60) == 3
        assert start.lines_with("Cause: ")
        assert start.lines_with("WARNING") == []


@pytest.mark.parametrize("name", ["v1/worker/cpu_worker", "__init__"])
def test_a_module_that_cannot_be_preloaded_is_imported_by_the_process_that_needs_it(name, folder):
    fake = prepend(variant(folder), name, _REFUSES_THE_FORKSERVER)
    with FakeStart(folder, env=environment(folder, fake)) as start:
        state = start.wait_ready().state()
        children = [state["engine"], *state["workers"]]
        assert [start.kind_of(child["pid"]) for child in children] == ["forkserver"] * 2
        assert _serves(start)
        assert start.lines_with("WARNING", "Traceback") == []
