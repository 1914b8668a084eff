"""The first failure is found in logs of vLLM, in all forms that logs have. The table of causes is complete.

The head of `logs.yaml` explains the form of the logs. `wrong_remedies.yaml` has logs for which a remedy was
wrong once.
"""

import json
import logging
import re
import sys
import tracemalloc
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final
from unittest.mock import patch

import msgspec
import pytest

from startup.logs.formatters import TextFormatter
from startup.logs.json_lines import JsonFormatter
from tests.support.data_files import read_yaml
from tests.support.growth import count_calls, growth
from tests.support.marks import thorough_but_for
from tests.support.properties import given, st
from vllm_cli.explain import evidence, failures, first_cause
from vllm_cli.explain.cause import Cause, KnownCause
from vllm_cli.explain.digest import digest_to_dict, write_digest
from vllm_cli.explain.first_cause import find_cause
from vllm_cli.explain.table import BY_CODE, ERROR_IN_CODE, KNOWN, LISTS, OWN, PARTS, STOPPED

FOLDER: Final = Path(__file__).parent
CORE: Final = "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] "
INFO: Final = "(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] "


class WrittenLog(msgspec.Struct, forbid_unknown_fields=True):
    """A log, and what is expected of its cause."""

    title: str
    log: str
    cause: str | None
    line: int = 0
    process: str = ""
    phase: str = ""
    shows: list[str] = []
    """Whole lines of the digest, or the cause's text."""
    contains: list[str] = []
    """Parts of lines of the digest, or of the cause's text."""

    @property
    def lines(self) -> list[str]:
        return self.log.removesuffix("\n").split("\n")

    @property
    def found(self) -> str:
        where = (f"line {self.line}", self.process, self.phase)
        return f"{self.cause}: {', '.join(filter(None, where))}" if self.cause else "nothing"


class RaisedError(msgspec.Struct, forbid_unknown_fields=True):
    """An exception of some functions or files, outermost first, and its cause."""

    cause: str
    functions: list[str]
    error: str


def read_logs(name: str) -> list[WrittenLog]:
    return read_yaml(FOLDER / name, WrittenLog)


_SENTENCE = "The NVIDIA driver on your system is too old (found version 12080)"


_LOGS = [log for name in ("logs.yaml", "wrong_remedies.yaml") for log in read_logs(name)]


_WITHOUT_LABELS = [log for log in _LOGS if "label" not in log.title]
_SOME_LOGS = [pytest.param(_LOGS[:20], id="some"), pytest.param(_LOGS[20:], id="others", marks=pytest.mark.thorough)]


def test_each_log_shows_its_cause():
    assert list(chain.from_iterable(map(_differences, _LOGS))) == []


def _differences(log: WrittenLog) -> Iterator[str]:
    """What differs between the log's cause and the expected one."""
    cause = find_cause(log.lines)
    if (found := _found(cause)) != log.found:
        yield f"{log.title}: {found}, not {log.found}"
    digest = write_digest(cause) if cause else []
    reported = [*(line.strip() for line in digest), cause.text.strip() if cause else ""]
    missing = [line for line in log.shows if line not in reported]
    missing += [part for part in log.contains if not any(part in line for line in reported)]
    if missing or len(digest) > 4:
        yield f"{log.title}: {digest} without {missing}"


@given(st.sampled_from(_LOGS), st.data())
def test_a_log_that_is_cut_anywhere_raises_no_error(log, data):
    first = data.draw(st.integers(0, len(log.lines) - 1))
    last = data.draw(st.integers(first, len(log.lines) - 1))
    begin, end = data.draw(st.integers(0, len(log.lines[first]))), data.draw(st.integers(0, len(log.lines[last])))
    find_cause([log.lines[first][begin:], *log.lines[first + 1 : last], log.lines[last][:end]])


@pytest.mark.parametrize("line", [line for log in _LOGS for line in log.lines if "detected platform" in line])
def test_each_beginning_of_a_line_about_the_platform_is_read(line):
    for end in range(len(line)):
        find_cause([line[:end]])
    assert find_cause(["detected platform "]) is None


def _found(cause: Cause | None) -> str:
    if cause is None:
        return "nothing"
    where = (f"line {cause.line}", cause.process, cause.phase)
    return f"{_name(cause) or 'unknown'}: {', '.join(filter(None, where))}"


def _name(cause: Cause | None) -> str | None:
    return cause.known.name if cause and cause.known else None


def _expected_name(log: WrittenLog) -> str | None:
    return None if log.cause == "unknown" else log.cause


def test_the_function_the_file_and_the_error_of_each_exception_tell_its_cause():
    """Errors that only one known text matches are not in the file. The tests of the table have all texts."""
    errors = read_yaml(FOLDER / "raised.yaml", RaisedError)
    assert [(each, name) for each in errors if (name := _name(_cause_of(each))) != each.cause] == []


def _cause_of(raised: RaisedError) -> Cause | None:
    frames = [f'{CORE}  File "/x/vllm/{each}.py", line 7, in {each}' for each in raised.functions]
    error_lines = [CORE + line for line in raised.error.split("\n")]
    return find_cause([f"{CORE}Traceback (most recent call last):", *frames, *error_lines])


def test_the_phases_of_many_processes_go_on():
    worker, loading = (
        "(Worker pid=7) INFO 09-03 11:03:36 [x.py:1]",
        "INFO 09-03 11:03:36 [x.py:1] Starting to load model",
    )
    cause = find_cause(
        [
            f"{worker} Starting to load model",
            *(f"(Worker pid={number}) {loading}" for number in range(1_000, 2_200)),
            f"{worker} Available KV cache memory: 1 GiB",
            "(Worker pid=7) Traceback (most recent call last):",
            "(Worker pid=7) KeyError: 'x'",
        ]
    )
    assert cause is not None and cause.phase == "while it sized the KV cache"


@pytest.mark.parametrize("formatter", [TextFormatter("engine"), JsonFormatter("engine", None)], ids=["text", "JSON"])
def test_the_formats_of_our_own_logs(formatter):
    record = logging.LogRecord("server.engine.engine_process", logging.ERROR, "process.py", 7, "It failed", None, None)
    try:
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    cause = find_cause(formatter.format(record).split("\n"))
    assert cause is not None and _name(cause) == "gpu-out-of-memory"


@pytest.mark.parametrize("begin", ["vllm: error: unrecognized arguments:", "ValueError: no x. Please set"])
def test_secrets_and_control_characters_of_the_log_are_not_shown(begin):
    cause = find_cause([f"{begin} --api-key sesame --\x1b]0;titlex"])
    assert cause is not None
    assert "sesame" not in "".join(write_digest(cause)) + str(digest_to_dict(cause))
    assert "\x1b" not in "".join(write_digest(cause))


def test_a_digest_can_be_an_object():
    cause = find_cause(["Killed"])
    known = {"code": "VC-PROCESS-KILLED", "cause": "process-killed", "title": cause.known.title}
    nothing = {"process": None, "phase": None, "place": None, "advice": None, "certainty": "possible"}
    assert digest_to_dict(cause) | {"advice": None} == known | nothing | {"text": "Killed", "line": 1}


@pytest.mark.thorough
def test_all_lines_of_an_excerpt_are_read_and_of_a_long_log_those_that_look_like_errors():
    assert find_cause(["we see:", _SENTENCE]) is not None
    assert find_cause(["we see:"] * 600 + [_SENTENCE]) is None
    assert find_cause(["we see a CUDA error:", _SENTENCE]) is not None


@pytest.mark.alone
@pytest.mark.parametrize(
    "line",
    [
        pytest.param('(APIServer pid=1) INFO:     127.0.0.1:4 - "POST /v1/completions HTTP/1.1" 200 OK', id="requests"),
        pytest.param(CORE + "ValueError: x", id="exceptions"),
        pytest.param(CORE + "Traceback (most recent call last):", id="tracebacks"),
        pytest.param('  File "/x/y.py", line 7, in f', id="frames"),
        pytest.param("Killed", id="ends"),
        pytest.param("During handling of the above exception, another exception occurred:", id="links"),
        pytest.param("(APIServer pid=1) INFO 09-03 11:03:00 [x.py:1] vLLM API server version 0.32.0", id="runs"),
        pytest.param('{"log": "error"}', id="json"),
    ],
)
def test_the_cost_is_linear_in_the_number_of_lines(line, monkeypatch):
    """Each line is compared with all known causes once, so that other costs are seen."""
    monkeypatch.setattr(evidence, "known_in", cache(evidence.known_in))
    assert growth(lambda lines: lambda: find_cause([line] * lines), smallest=64) is None


def test_an_error_in_json_costs_few_steps():
    """Calls of functions. A line cost 3,400 when it was compared with one cause after the other."""
    line = json.dumps({"level": "error", "message": "request 7 failed, and nothing known is in this line"})
    find_cause([line])  # what only a first search needs
    assert count_calls(lambda: find_cause([line] * 100)) / 100 < 300


@pytest.mark.alone
@pytest.mark.parametrize(
    "part", ["x", "[", "(", "(pid=1) ", "[0m", "| ", "error ", "a.", "1:", "ERROR 0", "]", " " * 9]
)
def test_the_cost_is_linear_in_the_length_of_a_line(part):
    assert growth(lambda size: lambda: find_cause(["Traceback (most recent call last):", part * size])) is None


@pytest.mark.thorough
def test_processes_without_end_take_bounded_memory(monkeypatch):
    """Labels of processes and messages of exceptions come from the log, which may have any number of them."""
    monkeypatch.setattr(failures, "_MOST_PROCESSES", 10)
    texts = ("Traceback (most recent call last):", f"ValueError: {'x' * 1_000}")

    def log(num: int) -> Iterator[str]:
        return (f"(Worker pid={number}) {text}" for number in range(num) for text in texts)

    find_cause(log(1))  # what only a first search needs
    tracemalloc.start()
    cause = find_cause(log(50))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cause is not None and cause.process == "Worker pid=0"
    assert most < 80_000


def test_states_of_a_progress_bar_cost_no_more_than_lines(monkeypatch):
    """A progress bar's states count as one line. Only a log's first lines have the more expensive search."""
    monkeypatch.setattr(first_cause, "_LONGEST_EXCERPT", 20)
    costs = set()
    for end in ("\r", ""):
        with patch.object(evidence, "known_in", wraps=evidence.known_in) as match:
            assert find_cause(f"Loading: {percent} %{end}" for percent in range(100)) is None
        costs.add(match.call_count)
    assert len(costs) == 1


_SHIPPERS = {
    "four blanks": lambda line: f"    {line}",
    "RunPod": lambda line: f"2026-09-03 11:03:37.123 [h4lz2nmjs7czzu] [info] {line}",
    "RunPod's file": lambda line: f"h4lz2nmjs7czzu[info]{line}",
    "Google's log explorer": lambda line: f"DEFAULT 2026-09-03T11:03:37.123456Z [containerName: vllm] {line}",
    "Google's export": lambda line: json.dumps({"jsonPayload": {"message": line}, "severity": "DEFAULT"}),
    "logging": lambda line: f"2026-09-03 11:03:37,123 - vllm.worker - INFO - {line}",
    "logging without time": lambda line: f"vllm - INFO - {line}",
    "a carrier's level": lambda line: json.dumps({"level": "info", "message": line}),
    "Google's severity": lambda line: json.dumps({"severity": "INFO", "textPayload": line}),
    "SageMaker's table": lambda line: '1725361417123,"{}"'.format(line.replace('"', '""')),
    "SageMaker": lambda line: f"[1,mpirank:0,algo-1]<stderr>:{line}",
    "Ray": lambda line: f"(RayWorkerWrapper pid=7, ip=10.0.0.2) {line}" if "pid=" in line else line,
    "docker compose": lambda line: f"vllm-1  | {line}",
    "kubectl --prefix": lambda line: f"[pod/vllm-0/vllm] {line}",
    "journald": lambda line: f"Sep 03 11:03:37 host vllm[123]: {line}",
    "stern": lambda line: f"vllm-0 vllm {line}",
    "fluentbit": lambda line: json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2026-09-03T11:03:37Z"}),
    "a terminal's width": lambda line: f"{line:240}",
    "CRI": lambda line: f"2026-09-03T11:03:37.123456789Z stderr F {line}",
}
"""Programs that carry logs -> how each writes a line."""


_FAILED_START = """\
(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] vLLM API server version 0.32.0
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/x/vllm/entrypoints/main.py", line 7, in run
(APIServer pid=1)     raise OSError("x")
(APIServer pid=1) OSError: x
(APIServer pid=1)
(APIServer pid=1) During handling of the above exception, another exception occurred:
(APIServer pid=1)
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/x/vllm/config.py", line 7, in load
(APIServer pid=1)     raise ValueError("x")
(APIServer pid=1) ValueError: Invalid repository ID or local directory specified: 'x'"""


def test_a_traceback_is_a_failure_even_if_a_carrier_of_logs_names_a_logger():
    lines = [json.dumps({"name": "vllm", "level": "info", "message": line}) for line in _FAILED_START.split("\n")]
    found = find_cause(lines)
    assert (_name(found), found.line) == ("model-not-found", 5)


def test_a_traceback_that_the_program_itself_logs_as_harmless_is_no_failure():
    traceback = "\n".join(_FAILED_START.split("\n")[1:5])
    record = {"level": "WARNING", "message": "x is not used", "exc_info": traceback}
    finder = first_cause.CauseFinder()
    finder.read(json.dumps(record))
    assert (finder.cause(), finder.has_started) == (None, False)


@pytest.mark.parametrize("number", ["{}: ", "{}\t", "{:6}  ", "{}| "])
@pytest.mark.parametrize("logs", _SOME_LOGS)
def test_numbers_of_lines_change_no_cause(logs, number):
    for log in logs:
        numbered = [number.format(at) + line for at, line in enumerate(log.lines, 1)]
        assert _found(find_cause(numbered)) == log.found, log.title


@pytest.mark.parametrize("carry", _SHIPPERS.values(), ids=_SHIPPERS)
@pytest.mark.parametrize("logs", _SOME_LOGS)
def test_the_programs_that_carry_logs_change_no_cause(logs, carry):
    for log in logs:
        assert _found(find_cause(map(carry, log.lines))) == log.found, log.title


@pytest.mark.parametrize("text", thorough_but_for(LISTS["harmless"], *LISTS["harmless"][:5]))
@given(log=st.sampled_from(_WITHOUT_LABELS), data=st.data())
def test_lines_that_healthy_starts_have_change_no_cause(text, log, data):
    at = data.draw(st.integers(0, len(log.lines)))
    found = find_cause([*log.lines[:at], f"x: {text} x", *log.lines[at:]])
    assert _name(found) == _expected_name(log)


@given(st.sampled_from(_WITHOUT_LABELS), st.integers(1, 7))
def test_lines_of_another_rank_change_no_cause(log, step):
    """Between the lines of one process, another one goes on."""
    other = "(Worker_TP7 pid=77) DEBUG 09-03 11:03:36 [x.py:1] step"
    mixed = [each for number, line in enumerate(log.lines) for each in ([other] * (number % step == 0) + [line])]
    found = find_cause(mixed)
    assert (found is None) == (log.cause is None)
    assert _name(found) == _expected_name(log)


def _explain(error: str, *files: str) -> Cause:
    frames = [f'  File "{file}", line 7, in f' for file in files]
    failed = ("EngineCore failed to start.", "Traceback (most recent call last):", *frames, error)
    cause = find_cause([f"{INFO}vLLM API server version 0.11.0", *(CORE + line for line in failed)])
    assert cause is not None
    return cause


_WITH_CAUSES = [(file, part.known.name) for part in PARTS for file in part.files if "/trans" not in file]


@pytest.mark.parametrize(
    "root",
    thorough_but_for(["/x/envs/vllm/lib/python3.12/site-packages/", "/usr/lib/dist-packages/", "/src/"], "/src/"),
)
def test_a_library_that_a_part_of_vllm_called_failed_for_that_part(root):
    for file, name in _WITH_CAUSES:
        own = f"vllm/{file.strip('/').removeprefix('vllm/')}/x.py"
        files = [root + path for path in ("vllm/v1/engine/core.py", own, "vllm/_custom_ops.py", "torch/_ops.py")]
        assert _name(_explain("RuntimeError: m must be divisible by 4", *files)) == name, file


def test_each_cause_has_a_public_source_or_errors_of_our_own():
    assert [cause.name for cause in KNOWN if not re.fullmatch(r"own|[\w.-]+#\d+", cause.source)] == []
    assert len({cause.name for cause in (*KNOWN, *OWN)}) == len(KNOWN) + len(OWN) > 130


def test_title_and_advice_are_short_and_have_one_thought_a_sentence():
    for cause in BY_CODE.values():
        assert not cause.title.endswith("."), cause.name
        assert len(cause.title) <= 90, cause.name
        assert 5 <= len(cause.advice) <= 260, cause.name
        assert not re.search("[;:] ", re.sub(r"`[^`]*`", "", f"{cause.title}. {cause.advice}")), cause.name


def test_each_text_is_recognised_as_its_cause():
    """No earlier cause in the table matches the text."""
    for cause, text in ((known, each) for known in KNOWN for each in known.texts):
        line = text.strip("^$").replace("…", "something ")
        line += "x" if line.endswith(" ") else ""
        is_error = re.match(r"[\w.]*(Error|Exception|Interrupt|NotFound|IsEnabled|Timeout)(:|$)", line)
        if line.startswith(" "):
            line = f"deploy.sh: line 17: 11440{line}"
        elif cause.where == "exception" and not is_error:
            line = f"RuntimeError: {line}"
        line = f"(APIServer pid=1) {line}" if cause is ERROR_IN_CODE else line
        lines = [line, "WorkerError: something"] if cause.where == "hint" else [line]
        found = find_cause([*_frames_for(cause), *lines])
        assert _name(found) == cause.name, text


@pytest.mark.parametrize("cause", [known for known in KNOWN if known.raised_in], ids=lambda cause: cause.name)
def test_a_cause_of_a_place_is_not_used_elsewhere_and_only_possible_without_a_place(cause):
    line = f"RuntimeError: {''.join(cause.texts[:1]).strip('^$').replace('…', 'x ')}"
    elsewhere = ["Traceback (most recent call last):", '  File "/x/site-packages/other/y.py", line 7, in call']
    found = find_cause([*elsewhere, line])
    assert found.known is not cause
    bare = find_cause([line])
    if bare is not None and bare.known is cause:
        assert bare.certainty == "possible"
        assert write_digest(bare)[1].startswith("Cause: possibly ")


_LOGGED = ("stopped", "no-platform")
"""Causes that vLLM logs as information."""


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_no_line_below_an_error_explains_an_exception_that_it_does_not_name(level):
    texts = [
        text.strip("^$").replace("…", "x ") for known in KNOWN if known.name not in _LOGGED for text in known.texts
    ]
    lines = [f"(Worker pid=7) {level} 09-03 11:03:00 [utils.py:253] {text}" for text in texts]
    odd = ["Traceback (most recent call last):", '  File "/x/site-packages/other/y.py", line 7, in call', "OddError: q"]
    found = find_cause([*lines, *odd])
    assert (found.known, found.text) == (None, "OddError: q")


@pytest.mark.parametrize("module", ["_C", "_moe_C", "torch_xla"])
@pytest.mark.parametrize(
    "error",
    [
        "OddError: q",
        "ImportError: cannot import name '__version_tuple__' from 'vllm'",
        "RuntimeError: Failed to infer device type",
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'x'",
        "AttributeError: '_OpNamespace' '_moe_C' object has no attribute 'x'",
    ],
)
def test_a_module_that_was_not_imported_explains_only_errors_about_it(module, error):
    reason = "x.so: undefined symbol: y"
    of_vllm = f"Failed to import from vllm.{module} with ImportError('{reason}')"
    reported = f"torch_xla import failed: {reason}" if module == "torch_xla" else of_vllm
    found = find_cause([f"(Worker pid=7) WARNING 09-03 11:03:00 [cuda.py:253] {reported}", error])
    is_of_device = module == "torch_xla" and "device type" in error
    assert found is not None and (found.line == 1) == (f"'{module}'" in error or is_of_device)


def _frames_for(cause: KnownCause) -> list[str]:
    """A traceback up to the place where the cause is raised."""
    if not cause.raised_in:
        return []
    place = cause.raised_in[0]
    file, function = ("x.py", place[:-2]) if place.endswith("()") else (place.lstrip("/"), "call")
    return ["Traceback (most recent call last):", f'  File "/x/vllm/y/{file}", line 7, in {function}']


def test_a_text_can_have_gaps_and_ends():
    cause = KnownCause("x", texts=("^Killed$", "one … two", "ends so$"))
    assert cause.matches("Killed")
    assert not cause.matches("Killed by")
    assert not cause.matches("was Killed")
    assert cause.matches("zero one and two three")
    assert not cause.matches("two one")
    assert cause.matches("it ends so, then ends so")
    assert not cause.matches("it ends so.")


def test_stopping_is_the_last_in_the_table():
    """If it came earlier, a shutdown with an error would count as a stop."""
    assert KNOWN[-1] is STOPPED
