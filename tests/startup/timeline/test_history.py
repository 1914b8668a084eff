"""Starts are recorded in a bounded file, and a damaged file never fails the next start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import EngineConfig, RendererConfig
from server.server_config import ServerConfig
from startup.config import ModelConfig, StartupConfig
from startup.outcome import explain_slowness
from startup.start_key import start_key
from startup.timeline.history import MAX_PER_KEY, MAX_RECORDS, StartRecord, history_path, read_history, record_start
from tests.startup.timeline.start_reports import report_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "history.jsonl"


def record_of(key: str = "k", **times: float) -> StartRecord:
    return StartRecord.from_report(report_of(**times), key)


def config_of(model: str | None = "some/model", **engine: object) -> StartupConfig:
    return StartupConfig(
        start_method="spawn",
        engine_ready_timeout_s=1,
        logging_level="INFO",
        model=ModelConfig(model=model, hf_token="secret"),
        engine=EngineConfig(**engine),
        renderer=RendererConfig(),
        server=ServerConfig(served_model_names=("m",)),
    )


def test_the_first_start_has_no_history(path) -> None:
    assert read_history("k", path) is None


def test_medians_come_from_the_starts_with_the_same_key(path) -> None:
    for import_s in (1.0, 1.2, 5.0):
        record_start(record_of(import_s=import_s), path)
    record_start(record_of("other", import_s=90), path)
    earlier = read_history("k", path)
    assert earlier is not None
    assert len(earlier.records) == 3
    assert earlier.total_s == pytest.approx(1.9)
    assert earlier.phases["engine:import_torch"] == pytest.approx(1.2)
    assert earlier.spans["engine:load_weights"].begin_s == pytest.approx(1.4)


def test_the_file_lies_in_the_cache_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    record_start(record_of())
    assert history_path() == tmp_path / "vllm_cli" / "history.jsonl"
    assert read_history("k") is not None


def test_the_file_keeps_the_newest_starts_only(path) -> None:
    path.parent.mkdir()
    lines = [record_of(f"k{number % 40}", import_s=number).to_line() for number in range(3 * MAX_RECORDS)]
    lines += [record_of("busy", import_s=number).to_line() for number in range(2 * MAX_PER_KEY)]
    path.write_text("\n".join(lines))
    record_start(record_of("busy", import_s=1000), path)
    assert len(path.read_text().splitlines()) <= MAX_RECORDS
    earlier = read_history("busy", path)
    assert earlier is not None
    assert len(earlier.records) == MAX_PER_KEY
    assert earlier.records[-1].phases["engine:import_torch"] == pytest.approx(1000)


def test_a_model_that_is_started_often_does_not_displace_the_others(path) -> None:
    path.parent.mkdir()
    lines = [record_of("rare").to_line(), *[record_of("busy").to_line()] * (2 * MAX_RECORDS)]
    path.write_text("\n".join(lines))
    record_start(record_of("busy"), path)
    assert len(path.read_text().splitlines()) < MAX_RECORDS
    assert read_history("rare", path) is not None


def test_the_file_never_grows_beyond_twice_what_it_keeps(path) -> None:
    for _ in range(2 * MAX_RECORDS + 10):
        record_start(record_of("a"), path)
        assert len(path.read_text().splitlines()) <= 2 * MAX_RECORDS
    earlier = read_history("a", path)
    assert earlier is not None
    assert len(earlier.records) == MAX_PER_KEY


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 5000,
        b"\xff\xfe{}",
        b"[1]\nnull\n{}\n42",
        b'{"version":2,"key":"k","model":"m","total_s":-1,"phases":{},"spans":{}}',
        b'{"version":2,"key":"k","model":"m","total_s":NaN,"phases":{},"spans":{}}',
        b'{"version":2,"key":"k","model":"m","total_s":1,"phases":[],"spans":{}}',
        b'{"version":2,"key":"k","model":"m","total_s":1,"phases":{},"spans":{"a":{}}}',
        b'{"version":99,"key":"k","total_s":1}',
        b"[" * 200_000,
        b"x" * (5 << 20),
    ],
    ids=["empty", "zeros", "no text", "other", "negative", "nan", "list", "spans", "version", "deep", "huge"],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(path, damage) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    assert read_history("k", path) is None
    record_start(record_of(), path)
    earlier = read_history("k", path)
    assert earlier is not None
    assert len(earlier.records) == 1


def test_whole_lines_around_a_damaged_one_still_count(path) -> None:
    path.parent.mkdir()
    line = record_of().to_line()
    path.write_text(f"{line}\n{line[:40]}\n{line}")
    earlier = read_history("k", path)
    assert earlier is not None
    assert len(earlier.records) == 2


@pytest.mark.parametrize("obstacle", ["folder", "fifo", "file for folder"])
def test_a_path_where_no_file_can_be_written_does_no_harm(path, obstacle) -> None:
    if obstacle == "file for folder":
        path.parent.write_text("")
    else:
        path.parent.mkdir()
        path.mkdir() if obstacle == "folder" else os.mkfifo(path)
    assert read_history("k", path) is None
    record_start(record_of(), path)
    assert read_history("k", path) is None


@pytest.mark.thorough
def test_concurrent_starts_leave_only_complete_lines(path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.startup.timeline.test_history import record_of\n"
        "from startup.timeline.history import record_start\n"
        "for _ in range(20): record_start(record_of(), Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[3])]
    writers = [subprocess.Popen(words) for _ in range(3)]
    assert [writer.wait(200) for writer in writers] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert 1 <= len(lines) <= 60
    assert all(StartRecord.from_line(line.encode()) for line in lines)


def test_the_key_depends_on_model_versions_and_engine_settings(tmp_path, monkeypatch) -> None:
    key = start_key(config_of(), {"torch": "2"})
    assert key == start_key(config_of(), {"torch": "2"})
    assert key != start_key(config_of("other/model"), {"torch": "2"})
    assert key != start_key(config_of(max_model_len=10), {"torch": "2"})
    assert key != start_key(config_of(), {"torch": "3"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert start_key(config_of("model"), {}) == start_key(config_of(str(tmp_path / "model")), {})


def test_a_record_is_the_same_after_writing_and_reading_its_line() -> None:
    record = record_of(resident_share=0.5)
    assert StartRecord.from_line(record.to_line().encode()) == record
    assert json.loads(record.to_line())["resident_share"] == 0.5


def history_of(path: Path, *import_times: float, resident_share: float | None = 1.0):
    for import_s in import_times:
        record_start(record_of(import_s=import_s, resident_share=resident_share), path)
    return read_history("k", path)


def test_a_slow_start_is_explained_by_the_phase_and_the_cold_page_cache(path) -> None:
    earlier = history_of(path, 1.0, 1.0, 1.1)
    line = explain_slowness(report_of(import_s=1.9, resident_share=0.1), earlier)
    assert line == (
        "slower than your median (2.6 s against 1.7 s): engine import torch took 0.9 s longer; "
        "page cache was cold (10% of the weights in memory)"
    )


def test_the_worst_phase_comes_first(path) -> None:
    line = explain_slowness(report_of(import_s=1.6, load_s=1.9), history_of(path, 1.0, 1.0, 1.0))
    assert line is not None
    assert line.index("load weights took 1.4 s") < line.index("import torch took 0.6 s")


def test_a_page_cache_that_is_always_cold_is_no_reason(path) -> None:
    earlier = history_of(path, 1.0, 1.0, 1.0, resident_share=0.0)
    line = explain_slowness(report_of(import_s=2.0, resident_share=0.0), earlier)
    assert line is not None
    assert "page cache" not in line


@pytest.mark.parametrize("import_s", [0.4, 1.0, 1.1])
def test_an_ordinary_start_needs_no_explanation(path, import_s) -> None:
    assert explain_slowness(report_of(import_s=import_s), history_of(path, 1.0, 1.0, 1.0)) is None


def test_two_earlier_starts_are_too_few_for_a_comparison(path) -> None:
    assert explain_slowness(report_of(import_s=9), history_of(path, 1.0, 1.0)) is None
    assert explain_slowness(report_of(import_s=9), None) is None
