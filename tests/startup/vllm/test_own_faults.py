"""If something breaks that plain vLLM does not use, the start succeeds with one line in the log."""

import os

import psutil
import pytest

from tests.startup.vllm.fake_start import ROOT, FakeStart, broken_environment
from tests.support.cli import run_cli
from tests.support.standby_process import StandbyProcess

pytestmark = pytest.mark.thorough

_PLAIN = "starts again without preloading"
_SPAWNS = "as a new program instead of forked"


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
        assert _PLAIN in warning or _SPAWNS in warning
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
        assert start.root.environ() == {**given, "VCLI_PLAIN_VLLM": "1"}
        children = start.root.children()
        assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
        assert start.responders() == start.forkservers() == []


def test_later_starts_are_plain_at_once_until_it_is_enabled_again(folder):
    given = broken_environment(folder, "patch in engine")
    expected = (_PLAIN, "starts without preloading: an earlier start with preloading failed (KeyError")
    for words, text in zip(((), ("--max-num-seqs", "8")), expected, strict=True):
        with FakeStart(folder, *words, env=given) as start:
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
