"""Every error that ends a start has a code, which `explain` shows. Each sentence about an end has a cause."""

import ast
import re
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import pytest

from base.machine.memory import OomWatch
from startup.embedded.engine_process import EngineProcess
from startup.errors import UNKNOWN_CAUSE, USAGE_CAUSE, StartupError, code_of, with_code
from startup.files.download.messages import DownloadError, FailureKind
from startup.reports.crash.output_record import OutputRecord, ProcessEnds
from startup.session.preflight.report import USAGE, PreflightReport, error, warning
from vllm_cli.explain.first_cause import find_cause
from vllm_cli.explain.own_faults import TracebackOrigin
from vllm_cli.explain.table import BY_CODE, KNOWN, OWN

_ROOT = Path(__file__).parents[3]
_END = re.compile(
    r"\b(?:ended (?:with|by|before|unexpectedly)|has ended|was (?:killed|ended)|killed by|died|crashed|exit code|hangs|"
    r"ran out of memory|no message|refused|signal|was stopped|SIGTERM|cannot start|not started again after)\b"
)
_NO_ENDS = (
    # Help texts and what plain vLLM does.
    "Start the model again when",
    "Run the server in the background.",
    "Serve MODEL with the OpenAI API",
    "checks each EngineCore",
    "an engine that hangs is not noticed",
    "the server ends up to five seconds later",
    "exit code 1 when the engine dies",
    "exit code {}",
    "SIGTERM ",
    "a signal calls its shutdown",
    "How long requests waited",
    "probes refused",
    # What follows from another message, which has the cause, or contains the reason.
    "ended by {",
    "ended with the process {",
    "{}: it was ended",
    "%d requests are ended with an error",
    "The engine died: {}",
    "the engine died: %s",
    # The server goes on without this process, or a command reports about requests.
    "the responder process",
    "{} was left behind by a server",
    "stopping: running requests are answered",
    "signal %d has no effect",
    "{}; stopped by a signal",
    "refused, because {}",
    "{} did not stop in time",
    "{}: {} answers ended before",
    # The end of an earlier start, which a warning of this one names.
    "the engine ended before all of them were captured",
)
"""Beginnings of texts that report no end, by the reason why."""
_PACKAGES = ("startup", "server", "router", "vllm_cli")
_ENGINES = {
    "vllm": "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] ",
    "embedded": "ERROR 09-03 11:03:37 (engine) server.engine.engine_process: ",
    "none": "",
}


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """The texts of the product that report an end."""
    files = sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))
    sources = (path.read_text() for path in files if "vllm_cli/explain" not in str(path))
    found = {text for source in sources if _END.search(source) for text in _sentences_of(ast.parse(source))}
    return sorted(found)


def _sentences_of(tree: ast.Module) -> Iterator[str]:
    parts = {id(part) for each in ast.walk(tree) if isinstance(each, ast.JoinedStr) for part in ast.walk(each)}
    parts |= {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if _END.search(text) and not text.startswith(_NO_ENDS) and " " in text.replace("out of memory", ""):
            yield text


@pytest.mark.thorough
@pytest.mark.parametrize("engine", _ENGINES)
def test_each_sentence_about_an_end_has_a_cause(sentences, engine):
    assert len(sentences) > 20
    assert [text for text in sentences if not _has_known_cause(text, engine)] == []


def _has_known_cause(sentence: str, engine: str) -> bool:
    text = re.sub(r"(by|with) \{\}", r"\1 SIGSEGV", sentence)
    text = text.replace("code SIGSEGV", "code 1").replace("%s", "x").replace("%d", "7").replace("{}", "9")
    cause = find_cause([f"{_ENGINES[engine]}{text}"])
    return cause is not None and cause.known is not None and cause.known.name != UNKNOWN_CAUSE


_SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]


@pytest.mark.parametrize("number", _SIGNALS)
def test_each_signal_has_the_same_cause_with_both_engines(number, tmp_path):
    record = OutputRecord(tmp_path)
    (tmp_path / "40.state").write_text("EngineCore_DP0\n0\n")
    ProcessEnds(record).add(40, -number)
    of_vllm = find_cause(record.file.read_text().splitlines())
    of_embedded = find_cause([f"{_ENGINES['embedded']}the engine died: {_describe_end(number)}"])
    assert of_vllm.known is not None and of_vllm.known == of_embedded.known


def _describe_end(number: int) -> str | None:
    process = EngineProcess.__new__(EngineProcess)
    process._process, process._oom_watch = Mock(pid=40, exitcode=-number), OomWatch()
    return process.describe_end()


ROOT = Path(__file__).parents[3]
NAMES = {known.name for known in BY_CODE.values()}
SOURCES = [path for package in ("startup", "router", "vllm_cli") for path in sorted((ROOT / package).rglob("*.py"))]


def _subclasses(kind: type[StartupError]) -> Iterator[type[StartupError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def test_names_and_codes_are_unique():
    names = [known.name for known in (*KNOWN, *OWN)]
    assert len({*names}) == len(names) == len(BY_CODE)
    assert [code for code in BY_CODE if not re.fullmatch(r"VC(-[A-Z0-9]+)+", code)] == []


@pytest.mark.parametrize("module", ["router.model_entry", "startup.files.download.messages"])
def test_each_kind_of_error_has_a_known_cause(module):
    import_module(module)
    kinds = {*_subclasses(StartupError)}
    assert len(kinds) >= 6
    assert [kind for kind in kinds if kind.cause not in NAMES] == []


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_each_failure_of_a_download_has_a_known_cause(kind):
    assert DownloadError(kind, "x").cause in NAMES - {UNKNOWN_CAUSE}


def test_each_cause_that_the_code_names_is_known():
    """Causes are in arguments `cause=…` of errors, in the tables `_CAUSES` and in constants `_CAUSE`."""
    texts = {path: text for path in SOURCES if "cause=" in (text := path.read_text()) or "_CAUSE" in text}
    named = [(path.name, name) for path, text in texts.items() for name in _named_causes(ast.parse(text))]
    assert len(named) >= 25
    assert [each for each in named if each[1] not in NAMES] == []


def _named_causes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found = [word.value for word in node.keywords if word.arg == "cause"]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_table = node.target.id == "_CAUSES" and isinstance(node.value, ast.Dict)
            found = [*node.value.values] if is_table and isinstance(node.value, ast.Dict) else []
            found += [node.value] if node.target.id == "_CAUSE" and node.value else []
        yield from (each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str))


def test_each_own_cause_is_used():
    """A code that no error has should be removed."""
    texts = "".join(path.read_text() for path in SOURCES if path.name != "own.py")
    assert [known.name for known in OWN if f'"{known.name}"' not in texts] == []


def test_the_preflights_errors_have_codes_and_the_first_one_counts():
    report = PreflightReport((warning("shm", "w"), error("port", "p", "port-in-use"), error("config", "c")), 0.0)
    err = report.as_error()
    assert err is not None and err.cause == "port-in-use"
    assert [finding.to_fields().get("code") for finding in report.findings] == [None, "VC-PORT-IN-USE", "VC-PREFLIGHT"]
    refused = PreflightReport((error("port", "p", "port-in-use"), error(USAGE, "u")), 0.0).as_error()
    assert refused is not None and refused.cause == USAGE_CAUSE


def test_each_code_in_the_documentation_exists():
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    named = {code for page in pages for code in re.findall(r"VC(?:-[A-Z0-9]+)+", page.read_text())}
    assert named
    assert named - BY_CODE.keys() == set()


def test_the_code_is_the_last_line():
    assert with_code("a\nb", "x-y") == "a\nb\nCode: VC-X-Y"
    assert code_of(UNKNOWN_CAUSE) in BY_CODE


_SOURCES = Path(__file__).parents[3]
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
    "run": f"{_SOURCES}/startup/vllm/vllm_main.py",
    "child": f"{_SOURCES}/startup/vllm/fork/recorded_ends.py",
    "begin": f"{_SOURCES}/startup/vllm/fork/openmp_state.py",
    "main": f"{_SOURCES}/startup/processes/forkserver.py",
    "wrapper": f"{_SOURCES}/startup/vllm/journal.py",
    "finder": f"{_SOURCES}/startup/imports/finder.py",
    "wheel": f"{_SITE}/vllm_cli/packages/startup/vllm/patches/engine_wait.py",
    "late": f"{_SITE}/vllm_cli/packages/startup/imports/late_names.py",
    "idle": f"{_SITE}/vllm_cli/packages/startup/vllm/patches/engine_idle.py",
    "embedded": f"{_SOURCES}/startup/embedded/engine_process.py",
    "other": f"{_SITE}/startup/main.py",
    "user": "/home/user/startup/auth.py",
    "checkout": f"{_SOURCES}/.venv/lib/python3.14/site-packages/vllm/v1/engine/core.py",
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
        pytest.param("core idle:prepare_and_poll core", "KeyError: 'x'", False, id="idle-engine"),
        pytest.param("core idle:step_and_poll core", "KeyError: 'x'", False, id="between-steps"),
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
