"""The survey chooses missing pages that fit into memory. The helper reads them, and always ends."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from startup.files.prefetch import worker
from startup.files.prefetch.messages import PrefetchJob, PrefetchProgress, PrefetchReport
from startup.files.prefetch.prefetch_process import PrefetchHandle, plan_libraries, start_prefetch
from startup.files.prefetch.survey import (
    RESERVE_BYTES,
    Block,
    FileRanges,
    Survey,
    decide,
    read_pages,
    survey_files,
    whole_file,
    write_pages,
)
from tests.support.cli import python_output, run_python
from tests.support.page_cache import evict, expect_read, held, never_cached, resident_bytes
from vllm_cli.commands import prefetch as command

MIB = 1 << 20
PLENTY = 1 << 50
"""A number of bytes of memory that is larger than any file."""
SLOW_MIB = 4 << 20
"""The size of a sparse file in MiB. It is read page by page, which takes minutes on any machine."""
HEAVY = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "email",
    "http",
    "inspect",
    "logging",
    "multiprocessing",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "urllib.request",
}
"""Modules of the standard library. The import of each takes as long as all imports of the helper."""


def prefetch(files: list[Path], **options: Any) -> PrefetchReport:
    with start_prefetch(files, **{"memory_bytes": PLENTY} | options) as handle:
        return handle.result(120)


def slow_prefetch(make_file: Callable[..., Path]) -> PrefetchHandle:
    """A prefetch in one thread that would take minutes, and that often reports its progress."""
    settings = {"num_threads": 1, "block_bytes": 1 << 30, "memory_bytes": PLENTY, "progress_interval_s": 0.01}
    return start_prefetch([make_file("slow", SLOW_MIB, is_sparse=True)], "on", **settings)


@pytest.mark.alone
def test_cold_files_are_resident_afterwards(make_file):
    """A file's name may have any bytes. The phases of the report have times of the monotonic clock."""
    files = [make_file("a", 40, is_cold=True), make_file(os.fsdecode(b"a b\n\xff\xc3\xa9"), 3, is_cold=True)]
    begin_ns = time.monotonic_ns()
    report = prefetch(files)
    assert (report.state, report.reason) == ("done", None)
    assert (report.num_files, report.total_bytes, report.resident_bytes) == (2, 43 * MIB, 0)
    assert report.read_bytes == 43 * MIB
    assert report.gb_per_s > 0
    for path in files:
        expect_read(path)
    assert [name for name, _, _ in report.spans] == ["prefetch_start", "prefetch_survey", "prefetch_read"]
    moments = [begin_ns, *(moment for _, begin, end in report.spans for moment in (begin, end)), time.monotonic_ns()]
    assert moments == sorted(moments)


@pytest.mark.alone
def test_only_missing_pages_are_read(make_file):
    path = make_file("f", 16, is_cold=True)
    with held(path, 0, MIB), held(path, 14 * MIB):
        report = prefetch([path], block_bytes=MIB)
    assert report.state == "done"
    assert report.resident_bytes == 3 * MIB
    assert report.resident_share == 3 / 16
    assert report.read_bytes == 13 * MIB
    expect_read(path)


@pytest.mark.alone
def test_no_more_is_read_than_fits_into_memory(make_file):
    path = make_file("f", 120, is_cold=True)
    report = prefetch([path], mode="on", memory_bytes=(1024 + 80) * MIB, block_bytes=4 * MIB, num_threads=2)
    assert report.state == "done"
    assert "84 MB of 126 MB fit" in report.reason
    assert 70 * MIB <= report.read_bytes <= 80 * MIB
    assert resident_bytes(path) < 120 * MIB, "only a part is resident, though the kernel reads ahead a little"


def test_evicted_pages_stop_the_prefetch(make_file, monkeypatch):
    path = make_file("f", 4, is_cold=True)
    monkeypatch.setattr(worker, "read_block", lambda fd, block: evict(path))
    job = PrefetchJob((str(path),), is_forced=True, num_threads=1, block_bytes=MIB, memory_bytes=PLENTY)
    report = worker.prefetch(job, lambda _: None)
    assert (report.state, report.reason) == ("stopped", "the page cache evicts pages right after they are read")
    assert report.read_bytes == MIB


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_what_may_be_resident_unknown_to_us_is_read_once(mode):
    report = prefetch([never_cached()], mode=mode)
    size = never_cached().stat().st_size
    assert (report.state, report.reason) == ("done", "it is not known how much of 0 MB was resident")
    assert (report.read_bytes, report.unknown_bytes, report.resident_share) == (size, size, None)
    assert "in 1 files, an unknown share resident before, 0.00 GB read" in str(report)


@pytest.mark.alone
def test_resident_files_need_no_helper(make_file, monkeypatch):
    path = make_file("weights.safetensors", 1)
    monkeypatch.setattr("startup.files.prefetch.prefetch_process.Helper", None)
    with held(path):
        report = start_prefetch([path]).result()
    assert (report.state, report.reason, report.resident_bytes) == ("off", "all files are resident", 1 << 20)


@pytest.mark.alone
def test_unreadable_files_are_reported_and_the_others_read(make_file, tmp_path, caplog):
    good = make_file("good", 4, is_cold=True)
    with caplog.at_level(logging.WARNING):
        report = prefetch([tmp_path / "missing", good, tmp_path])
    assert report.problems[0] == f"{tmp_path / 'missing'}: No such file or directory"
    assert len(report.problems) == 2
    assert report.state == "done"
    assert report.read_bytes == 4 * MIB
    expect_read(good)
    assert "missing: No such file or directory" in caplog.text


def test_mode_off_starts_no_process(tmp_path):
    with start_prefetch([tmp_path], "off") as handle:
        assert handle.pid is None
        assert handle.result() == PrefetchReport("off", "it is switched off")


@pytest.mark.thorough
def test_a_pending_result_is_none_and_close_stops_the_process(make_file):
    handle = slow_prefetch(make_file)
    pid = handle.pid
    assert next(handle.progress()).share < 1
    assert handle.result(0.1) is None
    handle.close()
    assert not psutil.pid_exists(pid)


def test_a_killed_helper_is_only_a_warning(make_file, caplog):
    with slow_prefetch(make_file) as handle, caplog.at_level(logging.WARNING):
        os.kill(handle.pid, signal.SIGKILL)
        report = handle.result(120)
    assert report == PrefetchReport("failed", "the helper process ended without a report: killed by signal 9")
    assert "no prefetch: the helper process ended without a report: killed by signal 9" in caplog.text


def test_the_helper_imports_little_and_no_third_party_module():
    code = (
        "import json, sys; sys.path.append(sys.argv[1]); import startup.files.prefetch.worker;"
        "print(json.dumps({m.__name__: str(getattr(m, '__file__', '')) for m in sys.modules.values()}))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).parents[4])]
    loaded = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [name for name, file in loaded.items() if "site-packages" in file] == []
    assert loaded.keys() & HEAVY == set()


def test_libraries_of_torch_are_found_without_importing_it():
    script = (
        "import sys; from startup.files.prefetch.prefetch_process import plan_libraries; print(*plan_libraries());"
        "assert 'torch' not in sys.modules"
    )
    assert "libtorch_cpu.so" in [Path(path).name for path in python_output(script).split()]
    assert all(path.is_file() for path in plan_libraries())


RUN = "import sys; from vllm_cli.commands.prefetch import prefetch; sys.exit(prefetch(standalone_mode=False))"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python(RUN, *arguments)


@pytest.mark.alone
def test_the_model_is_resident_after_the_command_and_the_report_says_what_was_read(tmp_path, make_file):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = make_file("model.safetensors", 4)
    evict(weights)
    result = run(tmp_path, "--threads", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("prefetch done: 0.00 GB in 3 files, 0% resident before, 0.00 GB read in")
    expect_read(weights)
    evict(weights)
    report = json.loads(run(tmp_path, "--json").stdout)
    assert (report["state"], report["read_bytes"]) == ("done", 4 * MIB)
    assert report["resident_share"] < 0.01
    assert report["gb_per_s"] > 0
    with held(weights):
        again = json.loads(run(tmp_path, "--json").stdout)
    assert (again["state"], again["resident_share"]) == ("off", 1.0)


def test_progress_is_printed_as_lines_without_a_terminal(capsys):
    handle = Mock(result=lambda: PrefetchReport("done"), progress=lambda: [PrefetchProgress(10**9, 4 * 10**9, 5.0)])
    command._follow(handle, command.Reporter(interval_s=0.0))
    assert capsys.readouterr().err == "prefetch [#####---------------]  25% 1.00 of 4.00 GB, 0.20 GB/s, 15 s left\n"


MB = 10**6

_MIB = 1 << 20


def job(*, room_mb: int | None, is_forced: bool = False) -> PrefetchJob:
    """A job with so much memory in addition to the reserve."""
    memory_bytes = None if room_mb is None else RESERVE_BYTES + room_mb * MB
    return PrefetchJob(paths=(), memory_bytes=memory_bytes, is_forced=is_forced)


def survey(*, missing_mb: int, resident_mb: int = 0) -> Survey:
    blocks = tuple(Block("f", i * 10 * MB, 10 * MB, 10 * MB) for i in range(missing_mb // 10))
    return Survey(1, (missing_mb + resident_mb) * MB, resident_mb * MB, 0, blocks, ())


OFF = 0
HUGE = Survey(1, 1 << 60, 0, 0, (Block("f", 0, 1 << 60, 1 << 60),), ())


@pytest.mark.parametrize(
    ("found", "room_mb", "is_forced", "due_mb", "reason"),
    [
        pytest.param(survey(missing_mb=500), 500, False, 500, "None", id="all fits"),
        pytest.param(survey(missing_mb=500, resident_mb=200), 500, False, 300, "300 MB of 500 MB fit", id="resident"),
        pytest.param(survey(missing_mb=500), 200, False, OFF, "200 MB of 500 MB fit", id="less than half"),
        pytest.param(survey(missing_mb=500), 200, True, 200, "200 MB of 500 MB fit", id="less than half, on"),
        pytest.param(survey(missing_mb=500), -100, False, OFF, "0 MB of 500 MB fit", id="no room"),
        pytest.param(survey(missing_mb=500), -100, True, OFF, "0 MB of 500 MB fit", id="no room, on"),
        pytest.param(
            survey(missing_mb=10, resident_mb=9990), 19_000, False, OFF, "99.9% of the bytes are resident", id="1 %"
        ),
        pytest.param(survey(missing_mb=10, resident_mb=9990), 19_000, True, 10, "None", id="1 %, on"),
        pytest.param(
            Survey(0, 0, 0, 0, (), ("f: gone",)), None, False, OFF, "none of the files can be read", id="unreadable"
        ),
        pytest.param(HUGE, None, False, OFF, "fit", id="this machine's memory"),
    ],
)
def test_missing_pages_that_fit_are_read_if_that_helps(found, room_mb, is_forced, due_mb, reason):
    wanted = decide(found, job(room_mb=room_mb, is_forced=is_forced))
    assert reason in str(wanted.reason)
    assert wanted.due_bytes == due_mb * MB
    assert due_mb == OFF or wanted.blocks[0].offset == 0


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.so"
    path.write_bytes(bytes(8 * _MIB))
    return path


def _record(folder: Path, *files: FileRanges) -> str:
    write_pages(str(folder / "pages.json"), files)
    return str(folder / "pages.json")


def test_a_record_moves_with_its_folder(tmp_path, library):
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "code").write_bytes(b"12345")
    _record(folder, whole_file(str(folder / "code")), FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)))
    moved = folder.rename(tmp_path / "moved")
    assert read_pages(str(moved / "pages.json")) == [
        FileRanges(str(moved / "code"), 5, ((0, 5),)),
        FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)),
    ]


def test_files_that_have_changed_are_left_out(tmp_path, library):
    gone = FileRanges(str(tmp_path / "gone"), 1, ((0, 1),))
    assert read_pages(_record(tmp_path, gone, FileRanges(str(library), _MIB, ((0, _MIB),)))) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["a", 1]]', "null"])
def test_a_damaged_record_is_empty(text, tmp_path):
    (tmp_path / "pages.json").write_text(text)
    assert read_pages(str(tmp_path / "pages.json")) == []


def test_only_the_recorded_parts_are_read(tmp_path, library):
    record = _record(tmp_path, FileRanges(str(library), 8 * _MIB, ((0, _MIB), (6 * _MIB, _MIB))))
    evict(library)
    assert survey_files(PrefetchJob((), record)).due_bytes == 2 * _MIB
    with start_prefetch([], "on", Path(record)) as prefetch:
        report = prefetch.result(60)
    assert (report.state, report.total_bytes) == ("done", 2 * _MIB)
    expect_read(library, 2 * _MIB)
    assert resident_bytes(library) < 6 * _MIB  # with the kernel's read-ahead
