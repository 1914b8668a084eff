"""Lines of vLLM's log are read in pieces, and after the prefixes of programs that carry logs."""

import io
import json
import tracemalloc
from itertools import chain

import pytest

from tests.support.growth import count_calls, growth
from vllm_cli.explain import log_line
from vllm_cli.explain.first_cause import find_cause
from vllm_cli.explain.log_line import LONGEST_LINE, LogForm, LogLine, read_line, read_lines

VLLM = "(EngineCore_DP0 pid=123) ERROR 09-03 11:03:37 [core.py:712]     raise ValueError("


_PREFIXES = {
    "none": "",
    "docker compose": "vllm-1  | ",
    "kubectl and docker --timestamps": "2026-09-03T11:03:37.123456789Z ",
    "containerd": "2026-09-03T11:03:37.123456789+02:00 stderr F ",
    "kubectl --prefix": "[pod/llama-0/server] ",
    "stern": "llama-0 server ",
    "journald": "Sep 03 11:03:37 node7 vllm[8052]: ",
    "supervisor": "2026-09-03 11:03:37.982 [Error] (Process) ",
    "notebook": "413.9s 90 ",
    "torch": "[rank0]: ",
    "job": "(llama, pid=2150) ",
    "colour": "\x1b[1;36m",
    "colour as carets": "^[[36m",
    "colour with a lost escape": "\ufffd[1;36m",
    "frame of a terminal": "│ ",
}


@pytest.mark.parametrize("prefix", _PREFIXES.values(), ids=_PREFIXES)
def test_the_prefixes_of_other_programs_are_left_out(prefix):
    line = LogLine("EngineCore_DP0 pid=123", "ERROR", "core.py", "    raise ValueError(")
    assert list(read_line(prefix + VLLM)) == [line]


_FORMS = """\
a worker behind its engine => (EngineCore_0 pid=1) (VllmWorker TP1 pid=5) INFO 08-25 11:01:23 [loader.py:267] x
    => VllmWorker TP1 pid=5 => INFO => loader.py => x
Ray, old format => (RayWorkerWrapper pid=144, ip=10.0.0.2) ERROR 04-24 16:06:40 worker_base.py:157] ValueError: x
    => RayWorkerWrapper pid=144 => ERROR => worker_base.py => ValueError: x
--log-format text-utc => (EngineCore pid=1) ERROR 2026-09-03T11:03:37Z [core.py:712] ValueError: x
    => EngineCore pid=1 => ERROR => core.py => ValueError: x
--log-format text-utc, our own => ERROR 2026-09-03T11:03:37Z (engine) server.engine.engine_process: ValueError: x
    => engine => ERROR =>  => ValueError: x
only the file => [multiproc_executor.py:492] ValueError: x =>  =>  => multiproc_executor.py => ValueError: x
a log format with bars => box  | 2024-02-20 21:46:23 | ERROR | stderr | ValueError: x =>  =>  =>  => ValueError: x
uvicorn => (APIServer pid=1) \x1b[32mINFO\x1b[0m:     Started. => APIServer pid=1 => INFO =>  => Started.
not a prefix in brackets => ERROR:    [Errno 98] error =>  => ERROR =>  => [Errno 98] error
C++ code of torch => [rank2]:[E716 19:47:26.324586583 shim_common.cpp:523] Exception: x =>  => ERROR =>  => Exception: x
dynamo => W0814 07:59:36.51 293 torch/x.py:1] [0/0] x =>  => WARNING =>  => [0/0] x
frame =>   File "x.py", line 3, in main =>  =>  =>  =>   File "x.py", line 3, in main
code with a bar =>     a | b =>  =>  =>  =>     a | b
docker's JSON => {"log": "(E pid=1) ERROR 09-03 11:03:37 [core.py:7]     x(\\n", "stream": "stderr"}
    => E pid=1 => ERROR => core.py =>     x(
"""
"""For each form: its name, a line, and the process, level, place and text in it."""


@pytest.mark.parametrize("form", _FORMS.replace("\n    =>", " =>").splitlines(), ids=lambda form: form.split(" =>")[0])
def test_lines_in_other_forms(form):
    _, raw, *read = form.split(" => ")
    assert list(read_line(raw)) == [LogLine(*read)]


def test_a_json_record_gives_its_message_and_its_traceback():
    record = {
        "level": "error",
        "role": "engine",
        "pid": 7,
        "message": "The engine failed",
        "exception": 'Traceback (most recent call last):\n  File "x.py", line 3, in main\nValueError: x',
    }
    assert list(read_line("2026-09-03T11:03:37Z stdout F " + json.dumps(record))) == [
        LogLine("engine pid=7", "ERROR", "", "The engine failed"),
        LogLine("engine pid=7", "ERROR", "", "Traceback (most recent call last):"),
        LogLine("engine pid=7", "ERROR", "", '  File "x.py", line 3, in main'),
        LogLine("engine pid=7", "ERROR", "", "ValueError: x"),
    ]


@pytest.mark.parametrize("raw", ["{", "{" * 5000])
def test_what_is_cut_within_json_is_a_text(raw):
    assert [line.text for line in read_line(raw)] == [raw[:LONGEST_LINE]]


@pytest.mark.parametrize("raw", ["{}", '{"a": 1}', '{"message": 3}'])
def test_json_that_is_no_record_says_nothing(raw):
    assert not any(line.text for line in read_line(raw))


def test_only_the_begin_of_a_long_line_is_read():
    [line] = read_line(VLLM + "x" * 100_000)
    assert len(line.text) < LONGEST_LINE
    assert [line[-2:] for line in read_lines(io.BytesIO(b"x" * 100_000 + b"\ry"))] == ["x\r", "y"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_lines_do_not_depend_on_the_pieces(monkeypatch, chunk):
    monkeypatch.setattr(log_line, "_CHUNK", chunk)
    assert [*read_lines(io.BytesIO(b"one\n\nt\xc3\xa9n\n10%\r20%\rdone\na\xff\xfeb\nlast"))] == [
        "one",
        "",
        "tén",
        "10%\r",
        "20%\r",
        "done",
        "a\ufffd\ufffdb",
        "last",
    ]


def test_windows_line_ends_and_progress_bars_do_not_change_the_number_of_a_line():
    log = b"Loading\r\n10%\r20%\r30%\nTraceback (most recent call last):\r\n  x\r\nValueError: wrong\r\n"
    assert find_cause(read_lines(io.BytesIO(log))).line == 5


def test_a_line_without_end_takes_bounded_memory():
    class Endless(io.RawIOBase):
        """A stream of 64 MB without a line break."""

        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return b"x" * size

    tracemalloc.start()
    [line] = read_lines(Endless())  # type: ignore[arg-type]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(line) == LONGEST_LINE
    assert most < 4 << 20


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_a_log_can_have_the_encodings_of_powershell(encoding, monkeypatch):
    monkeypatch.setattr(log_line, "_CHUNK", 3)
    stream = io.BytesIO("\ufeffZeile 1: ä€😀\nZeile 2\n".encode(encoding))
    assert list(read_lines(stream)) == ["Zeile 1: ä€😀", "Zeile 2"]


_LINE_ENDS = {
    "LF": "\n",
    "CR": "\r",
    "CRLF": "\r\n",
    "CR CR LF": "\r\r\n",
    "NEL": "\x85",
    "LS": "\u2028",
    "NUL": "\0",
    "colours": "\x1b[0m\n",
    "a progress bar": "\x1b[A\r",
    "none": "",
}
_LINES = ("x" * 50, "ERROR 09-03 11:03:37 [core.py:712] ValueError: No", "50%|####  | 1/2 [00:01]")


def _num_calls(log: str) -> int:
    """How many functions are called to read the lines of a log. The first reading of a process calls more."""

    def read() -> object:
        return [*chain.from_iterable(map(read_line, read_lines(io.BytesIO(log.encode()))))]

    read()
    return count_calls(read)


@pytest.mark.parametrize("line", _LINES, ids=["text", "error", "bar"])
@pytest.mark.parametrize("end", _LINE_ENDS.values(), ids=_LINE_ENDS)
def test_a_line_costs_the_same_with_each_line_end(end, line):
    """The text between CR and CR LF is an empty line. The removal of colours is one more call."""
    num, lf = 200, "\n\n" if end == "\r\r\n" else "\n"
    assert _num_calls((line + end) * num) <= _num_calls((line + lf) * num) + 2 * num


@pytest.mark.parametrize("end", ["LF", "CR", "CRLF", "a progress bar"])
def test_a_cause_is_found_with_each_line_end(end):
    lines = [
        "x" * 50_000,
        "Traceback (most recent call last):",
        "ValueError: max_lora_rank",
        "",
        "\0" * 50_000 + "Killed",
    ]
    cause = find_cause(read_lines(io.BytesIO("".join(line + _LINE_ENDS[end] for line in lines).encode())))
    assert cause is not None and cause.text in ("Killed", "ValueError: max_lora_rank")


@pytest.mark.alone
@pytest.mark.parametrize(
    "part", ["x", "[", " ", "1:", "Traceback (most recent call last):", "INFO 09-03 11:03:37 [x.py:1"]
)
def test_the_form_of_a_log_costs_time_linear_in_the_length_of_a_line(part):
    assert growth(lambda size: lambda: LogForm().read(part * size)) is None
