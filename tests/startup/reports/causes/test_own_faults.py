"""Every stack of a start has frames of our code. A failure is our fault only if vLLM has not caused it."""

from pathlib import Path

import pytest

from startup.reports.causes.first_cause import find_cause
from startup.reports.causes.own_faults import TracebackOrigin

_ROOT = Path(__file__).parents[4]
_SITE = "/venv/lib/python3.14/site-packages"
_FRAMES = {
    "core": f"{_SITE}/vllm/v1/engine/core.py",
    "torch": f"{_SITE}/torch/__init__.py",
    "forkserver": "/usr/lib/python3.14/multiprocessing/forkserver.py",
    "connection": "/usr/lib/python3.14/multiprocessing/connection.py",
    "process": "/usr/lib/python3.14/multiprocessing/process.py",
    "spawn": "/usr/lib/python3.14/multiprocessing/spawn.py",
    "importlib": "/usr/lib/python3.14/importlib/__init__.py",
    "frozen": "<frozen importlib._bootstrap>",
    "run": f"{_ROOT}/startup/vllm/vllm_main.py",
    "child": f"{_ROOT}/startup/vllm/fork/recorded_ends.py",
    "begin": f"{_ROOT}/startup/vllm/fork/openmp_state.py",
    "main": f"{_ROOT}/startup/processes/forkserver.py",
    "wrapper": f"{_ROOT}/startup/vllm/journal.py",
    "finder": f"{_ROOT}/startup/imports/finder.py",
    "wheel": f"{_SITE}/vllm_cli/packages/startup/vllm/patches/engine_wait.py",
    "late": f"{_SITE}/vllm_cli/packages/startup/vllm/patches/late_imports.py",
    "embedded": f"{_ROOT}/startup/embedded/engine_process.py",
    "other": f"{_SITE}/startup/main.py",
    "user": "/home/user/startup/auth.py",
    "checkout": f"{_ROOT}/.venv/lib/python3.14/site-packages/vllm/v1/engine/core.py",
}


@pytest.mark.parametrize(
    ("frames", "error", "is_ours"),
    [
        pytest.param("core process forkserver:connect_to_new_process", "AssertionError", True, id="driven"),
        pytest.param("core forkserver connection", "EOFError", True, id="library-below-driven"),
        pytest.param("run core wrapper", "TypeError: call() takes no arguments", True, id="innermost"),
        pytest.param("core wheel", "AttributeError: no such name", True, id="installed"),
        pytest.param("core finder frozen", "ImportError: no spec", True, id="finder"),
        pytest.param("forkserver begin torch", "RuntimeError: threads were started", True, id="below-added"),
        pytest.param("main spawn child:_restore core", "ImportError: no name X", True, id="unpickled"),
        pytest.param("core late:real importlib torch", "AttributeError: partially initialized module", True, id="late"),
        pytest.param("forkserver", "BlockingIOError: [Errno 11] Resource temporarily unavailable", True, id="fork"),
        pytest.param("run core", "ValueError: bad flag", False, id="outermost"),
        pytest.param("run core wrapper core", "TypeError: no such argument", False, id="wrapped"),
        pytest.param("forkserver spawn process child:run_and_record core", "KeyError: 'x'", False, id="in-a-fork"),
        pytest.param("main spawn process child:run_and_record core", "KeyError: 'x'", False, id="in-our-fork"),
        pytest.param("main spawn process:run core", "KeyError: 'x'", False, id="in-a-process"),
        pytest.param("run core importlib frozen", "ModuleNotFoundError: No module named 'no_such'", False, id="import"),
        pytest.param("core finder core", "ImportError: cannot import name X", False, id="imported"),
        pytest.param("core late:prepare_and_poll core", "KeyError: 'x'", False, id="idle-engine"),
        pytest.param("core late:import_late torch", "ImportError: libcudart.so.12", False, id="import-not-delayed"),
        pytest.param("core connection", "EOFError", False, id="pipe-of-vllm"),
        pytest.param("core wrapper", "startup.errors.StartupError: no", False, id="intended"),
        pytest.param("core wrapper", "RuntimeError: --compile-cache require: vLLM would compile", False, id="required"),
        pytest.param("embedded forkserver", "EOFError", False, id="embedded"),
        pytest.param("core user", "KeyError: 'x'", False, id="middleware"),
        pytest.param("core other", "KeyError: 'x'", False, id="other-program"),
        pytest.param("run checkout", "KeyError: 'x'", False, id="environment-in-a-checkout"),
    ],
)
def test_a_failure_is_ours_if_our_code_or_a_library_below_it_has_raised_it(frames, error, is_ours):
    """The frames of the traceback are given as FILE or FILE:FUNCTION."""
    parts = [word.partition(":") for word in frames.split()]
    lines = [f'  File "{_FRAMES[file]}", line 7, in {function or "call"}' for file, _, function in parts]
    cause = find_cause(["Traceback (most recent call last):", *lines, error])
    assert (cause.known is not None and cause.known.name == "vllm-cli") == is_ours


def test_the_first_of_a_chain_counts():
    lines = ["Traceback (most recent call last):", f'  File "{_FRAMES["forkserver"]}", line 7, in main', "EOFError"]
    link = "The above exception was the direct cause of the following exception:"
    last = ["Traceback (most recent call last):", f'  File "{_FRAMES["core"]}", line 7, in start', "RuntimeError: no"]
    cause = find_cause([*lines, "", link, "", *last])
    assert (cause.text, cause.known and cause.known.name) == ("EOFError in main()", "vllm-cli")


_SOCKET = "/usr/lib/python3.11/socket.py"
_PORT = "startup/vllm/serving/serving_events.py"


@pytest.mark.parametrize(
    ("frames", "is_own"),
    [
        ([(_FRAMES["core"], "create_server_socket"), (_PORT, "bind")], False),
        ([(_FRAMES["core"], "create_server_socket"), (_PORT, "bind"), (_SOCKET, "bind")], False),
        ([(_FRAMES["core"], "create_server_socket"), (_PORT, "_addresses")], True),
        ([("startup/vllm/launch/start.py", "run"), (_PORT, "bind")], True),
    ],
    ids=["binds", "binds by the library", "our own step", "our own call"],
)
def test_an_address_that_the_machine_refuses_to_vllm_is_no_fault_of_ours(frames, is_own):
    origin = TracebackOrigin()
    for file, function in frames:
        origin.add_frame(file, function)
    assert origin.is_own("OSError: [Errno 98] Address already in use") == is_own
