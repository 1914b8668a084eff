"""Lines of vLLM's log are read in pieces, and after the prefixes of programs that carry logs."""

import io
import json
import sys
import tracemalloc

import pytest

from startup.reports.causes import log_line
from startup.reports.causes.first_cause import find_cause
from startup.reports.causes.log_line import LONGEST_LINE, LogLine, read_line, read_lines

VLLM = "(EngineCore_DP0 pid=123) ERROR 09-03 11:03:37 [core.py:712]     raise ValueError("
READ = LogLine("EngineCore_DP0 pid=123", "ERROR", "core.py", "    raise ValueError(")


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param("", id="none"),
        pytest.param("vllm-1  | ", id="docker compose"),
        pytest.param("2026-09-03T11:03:37.123456789Z ", id="kubectl and docker --timestamps"),
        pytest.param("2026-09-03T11:03:37.123456789+02:00 stderr F ", id="containerd"),
        pytest.param("[pod/llama-0/server] ", id="kubectl --prefix"),
        pytest.param("llama-0 server ", id="stern"),
        pytest.param("Sep 03 11:03:37 node7 vllm[8052]: ", id="journald"),
        pytest.param("2026-09-03 11:03:37.982 [Error] (Process) ", id="supervisor"),
        pytest.param("413.9s 90 ", id="notebook"),
        pytest.param("[rank0]: ", id="torch"),
        pytest.param("(llama, pid=2150) ", id="job"),
        pytest.param("\x1b[1;36m", id="colour"),
        pytest.param("^[[36m", id="colour as carets"),
        pytest.param("\ufffd[1;36m", id="colour with a lost escape"),
        pytest.param("│ ", id="frame of a terminal"),
    ],
)
def test_the_prefixes_of_other_programs_are_left_out(prefix):
    assert list(read_line(prefix + VLLM)) == [READ]


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        pytest.param(
            "(EngineCore_0 pid=1) (VllmWorker TP1 pid=5) INFO 08-25 11:01:23 [loader.py:267] x",
            LogLine("VllmWorker TP1 pid=5", "INFO", "loader.py", "x"),
            id="a worker behind its engine",
        ),
        pytest.param(
            "(RayWorkerWrapper pid=144, ip=10.0.0.2) ERROR 04-24 16:06:40 worker_base.py:157] ValueError: x",
            LogLine("RayWorkerWrapper pid=144", "ERROR", "worker_base.py", "ValueError: x"),
            id="Ray, old format",
        ),
        pytest.param(
            "(EngineCore pid=1) ERROR 2026-09-03T11:03:37Z [core.py:712] ValueError: x",
            LogLine("EngineCore pid=1", "ERROR", "core.py", "ValueError: x"),
            id="--log-format text-utc",
        ),
        pytest.param(
            "ERROR 2026-09-03T11:03:37Z (engine) server.engine.process: ValueError: x",
            LogLine("engine", "ERROR", "", "ValueError: x"),
            id="--log-format text-utc, our own",
        ),
        pytest.param(
            "[multiproc_executor.py:492] ValueError: x",
            LogLine("", "", "multiproc_executor.py", "ValueError: x"),
            id="only the file",
        ),
        pytest.param(
            "box  | 2024-02-20 21:46:23 | ERROR | stderr | ValueError: x",
            LogLine("", "", "", "ValueError: x"),
            id="a log format with bars",
        ),
        pytest.param(
            "(APIServer pid=1) \x1b[32mINFO\x1b[0m:     Application startup complete.",
            LogLine("APIServer pid=1", "INFO", "", "Application startup complete."),
            id="uvicorn",
        ),
        pytest.param(
            "ERROR:    [Errno 98] error while attempting to bind",
            LogLine("", "ERROR", "", "[Errno 98] error while attempting to bind"),
            id="not a prefix in brackets",
        ),
        pytest.param(
            "[rank2]:[E716 19:47:26.324586583 shim_common.cpp:523] Exception in aoti_torch: x",
            LogLine("", "ERROR", "", "Exception in aoti_torch: x"),
            id="C++ code of torch",
        ),
        pytest.param("W0814 07:59:36.51 293 torch/x.py:1] [0/0] x", LogLine("", "WARNING", "", "[0/0] x"), id="dynamo"),
        pytest.param(
            '  File "x.py", line 3, in main', LogLine("", "", "", '  File "x.py", line 3, in main'), id="frame"
        ),
        pytest.param("    a | b", LogLine("", "", "", "    a | b"), id="code with a bar"),
    ],
)
def test_lines_in_other_forms(raw, read):
    assert list(read_line(raw)) == [read]


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


def test_a_line_of_dockers_json_files():
    assert list(read_line(json.dumps({"log": VLLM + "\n", "stream": "stderr"}))) == [READ]


@pytest.mark.parametrize("raw", ["{", "{" * 5000])
def test_what_is_cut_within_json_is_a_text(raw):
    assert [line.text for line in read_line(raw)] == [raw[:LONGEST_LINE]]


@pytest.mark.parametrize("raw", ["{}", '{"a": 1}', '{"message": 3}'])
def test_json_that_is_no_record_says_nothing(raw):
    assert not any(line.text for line in read_line(raw))


def test_only_the_begin_of_a_long_line_is_read():
    [line] = read_line(VLLM + "x" * 100_000)
    assert len(line.text) < LONGEST_LINE


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_lines_do_not_depend_on_the_pieces(monkeypatch, chunk):
    monkeypatch.setattr(log_line, "_CHUNK", chunk)
    assert [*read_lines(io.BytesIO(b"one\n\nt\xc3\xa9n\n10%\r20%\rdone\nlast"))] == [
        "one", "", "tén", "10%\r", "20%\r", "done", "last",
    ]  # fmt: skip


def test_bytes_that_are_not_text_are_replaced():
    assert [*read_lines(io.BytesIO(b"a\xff\xfeb\n"))] == ["a\ufffd\ufffdb"]


def test_windows_line_ends_and_progress_bars_do_not_change_the_number_of_a_line():
    log = b"Loading\r\n10%\r20%\r30%\nTraceback (most recent call last):\r\n  x\r\nValueError: wrong\r\n"
    cause = find_cause(read_lines(io.BytesIO(log)))
    assert cause is not None
    assert cause.line == 5


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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_log_can_have_the_encodings_of_powershell(encoding, monkeypatch):
    monkeypatch.setattr(log_line, "_CHUNK", 3)
    stream = io.BytesIO("Zeile 1: ä€😀\nZeile 2\n".encode(encoding))
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
_LINES = {
    "text": "x" * 50,
    "error": "ERROR 09-03 11:03:37 [core.py:712] ValueError: No",
    "bar": "50%|####  | 1/2 [00:01]",
}


def _num_calls(log: str) -> int:
    """How many Python functions are called to explain a log. Unlike time, it is always the same."""
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        find_cause(read_lines(io.BytesIO(log.encode())))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("line", _LINES)
@pytest.mark.parametrize("end", _LINE_ENDS)
def test_a_line_costs_the_same_with_each_line_end(end, line):
    """A text between CR and LF, which is empty, may cost a few calls more."""
    num, text = 1_000, _LINES[line]
    assert _num_calls((text + _LINE_ENDS[end]) * num) <= _num_calls(f"{text}\n" * num) + 10 * num


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
