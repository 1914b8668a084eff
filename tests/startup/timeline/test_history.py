"""Starts are recorded in a bounded file, and a damaged file never fails the next start."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from server.config import EngineConfig, RendererConfig
from server.server_config import ServerConfig
from startup.config import ModelConfig, StartupConfig
from startup.embedded_start import start_key
from startup.timeline.history import (
    MAX_PER_KEY,
    MAX_RECORDS,
    EarlierStarts,
    StartRecord,
    history_path,
    installed_versions,
    read_history,
    record_start,
)
from tests.startup.timeline.start_reports import report_of

PACKAGES = ("torch", "transformers", "huggingface-hub", "click", "no-such-package")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "history.jsonl"


def record_of(key: str = "k", **times: float) -> StartRecord:
    return StartRecord.from_report(report_of(**times), key)


def earlier_starts(path: Path, key: str = "k") -> EarlierStarts:
    earlier = read_history(key, path)
    assert earlier is not None
    return earlier


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


def test_medians_come_from_the_starts_with_the_same_key(path):
    for import_s in (1.0, 1.2, 5.0):
        record_start(record_of(import_s=import_s), path)
    record_start(record_of("other", import_s=90), path)
    earlier = earlier_starts(path)
    assert len(earlier.records) == 3
    assert earlier.total_s == pytest.approx(1.9)
    assert earlier.spans["engine:load_weights"].begin_s == pytest.approx(1.4)


def test_the_file_lies_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    record_start(record_of())
    assert history_path() == tmp_path / "vllm_cli" / "history.jsonl"
    assert read_history("k") is not None


def test_a_model_that_is_started_often_does_not_displace_the_others(path):
    path.parent.mkdir()
    lines = [record_of("rare").to_line(), *[record_of("busy").to_line()] * (2 * MAX_RECORDS)]
    path.write_text("\n".join(lines))
    record_start(record_of("busy"), path)
    assert len(path.read_text().splitlines()) < MAX_RECORDS
    assert read_history("rare", path) is not None


def test_the_file_never_grows_beyond_twice_what_it_keeps(path):
    for _ in range(2 * MAX_RECORDS + 10):
        record_start(record_of("a"), path)
        assert len(path.read_text().splitlines()) <= 2 * MAX_RECORDS
    earlier = earlier_starts(path, "a")
    assert len(earlier.records) == MAX_PER_KEY


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 5000,
        b"\xff\xfe{}",
        b"[1]\nnull\n{}\n42",
        b'{"version":2,"key":"k","model":"m","total_s":-1,"spans":{}}',
        b'{"version":2,"key":"k","model":"m","total_s":NaN,"spans":{}}',
        b'{"version":2,"key":"k","model":"m","total_s":1,"spans":[]}',
        b'{"version":2,"key":"k","model":"m","total_s":1,"spans":{"a":{}}}',
        b'{"version":99,"key":"k","total_s":1}',
        b"[" * 200_000,
        b"x" * (5 << 20),
    ],
    ids=["empty", "zeros", "no text", "other", "negative", "nan", "list", "spans", "version", "deep", "huge"],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(path, damage):
    path.parent.mkdir()
    path.write_bytes(damage)
    assert read_history("k", path) is None
    record_start(record_of(), path)
    earlier = earlier_starts(path)
    assert len(earlier.records) == 1


def test_whole_lines_around_a_damaged_one_still_count(path):
    path.parent.mkdir()
    line = record_of().to_line()
    path.write_text(f"{line}\n{line[:40]}\n{line}")
    earlier = earlier_starts(path)
    assert len(earlier.records) == 2


@pytest.mark.parametrize("obstacle", ["folder", "fifo", "file for folder"])
def test_a_path_where_no_file_can_be_written_does_no_harm(path, obstacle):
    if obstacle == "file for folder":
        path.parent.write_text("")
    else:
        path.parent.mkdir()
        path.mkdir() if obstacle == "folder" else os.mkfifo(path)
    assert read_history("k", path) is None
    record_start(record_of(), path)
    assert read_history("k", path) is None


@pytest.mark.thorough
def test_concurrent_starts_leave_only_complete_lines(path):
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


def test_the_key_depends_on_model_versions_and_engine_settings(tmp_path, monkeypatch):
    key = start_key(config_of(), {"torch": "2"})
    assert key == start_key(config_of(), {"torch": "2"})
    assert key != start_key(config_of("other/model"), {"torch": "2"})
    assert key != start_key(config_of(max_model_len=10), {"torch": "2"})
    assert key != start_key(config_of(), {"torch": "3"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert start_key(config_of("model"), {}) == start_key(config_of(str(tmp_path / "model")), {})


def test_a_record_is_the_same_after_writing_and_reading_its_line():
    record = record_of()
    assert StartRecord.from_line(record.to_line().encode()) == record


def test_versions_are_those_of_the_metadata():
    assert installed_versions(PACKAGES) == {name: version(name) for name in PACKAGES[:-1]}


def test_reading_versions_imports_no_package():
    code = (
        "import sys\n"
        "from startup.timeline.history import installed_versions\n"
        "assert installed_versions(['torch'])\n"
        "print({'torch', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
