"""The history keeps the newest starts with one key, and reports their medians."""

from importlib.metadata import version
from pathlib import Path

import pytest

from server.terms.config import EngineConfig, RendererConfig
from server.terms.server_config import ServerConfig
from startup.embedded.start import history_key
from startup.reports.timeline.history import (
    MAX_PER_KEY,
    EarlierStarts,
    StartRecord,
    installed_versions,
    read_history,
    record_start,
)
from startup.settings.config import ModelConfig, StartupConfig
from startup.storage.caches import CachedValue
from tests.startup.reports.timeline.start_reports import report_of
from tests.support.cli import python_output

PACKAGES = ("torch", "transformers", "huggingface-hub", "click", "no-such-package")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    return tmp_path


def record_of(**times: float) -> StartRecord:
    return StartRecord.from_report(report_of(**times))


def earlier_starts() -> EarlierStarts:
    earlier = read_history("k")
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


def test_medians_come_from_the_starts_with_the_same_key():
    for import_s in (1.0, 1.2, 5.0):
        record_start("k", record_of(import_s=import_s))
    record_start("other", record_of(import_s=90))
    earlier = earlier_starts()
    assert len(earlier.records) == 3
    assert earlier.total_s == pytest.approx(1.9)
    assert earlier.spans["engine:load_weights"].begin_s == pytest.approx(1.4)
    assert earlier.records[0] == record_of(import_s=1.0)


def test_the_newest_starts_are_kept():
    for import_s in range(MAX_PER_KEY + 10):
        record_start("k", record_of(import_s=import_s))
    records = earlier_starts().records
    assert (len(records), records[0]) == (MAX_PER_KEY, record_of(import_s=10))


@pytest.mark.parametrize(
    "value",
    [
        7,
        {},
        [{}],
        [{"total_s": -1, "spans": {}}],
        [{"total_s": 1, "spans": []}],
        [{"total_s": 1, "spans": {"a": 1}}],
        [{"total_s": 1, "spans": {"a": {}}}],
    ],
    ids=["number", "object", "empty", "negative", "list", "number as span", "object as span"],
)
def test_what_is_no_history_counts_as_none_and_is_replaced(value):
    CachedValue("history", "k").write(value)
    assert read_history("k") is None
    record_start("k", record_of())
    assert len(earlier_starts().records) == 1


def test_the_key_depends_on_model_versions_and_engine_settings(tmp_path, monkeypatch):
    key = history_key(config_of(), {"torch": "2"})
    assert key == history_key(config_of(), {"torch": "2"})
    assert key != history_key(config_of("other/model"), {"torch": "2"})
    assert key != history_key(config_of(max_model_len=10), {"torch": "2"})
    assert key != history_key(config_of(), {"torch": "3"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert history_key(config_of("model"), {}) == history_key(config_of(str(tmp_path / "model")), {})


def test_versions_are_those_of_the_metadata():
    assert installed_versions(PACKAGES) == {name: version(name) for name in PACKAGES[:-1]}


def test_reading_versions_imports_no_package():
    code = (
        "import sys\n"
        "from startup.reports.timeline.history import installed_versions\n"
        "assert installed_versions(['torch'])\n"
        "print({'torch', 'importlib.metadata'} & set(sys.modules))"
    )
    assert python_output(code).strip() == "set()"
