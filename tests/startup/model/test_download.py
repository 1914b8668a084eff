"""Downloads report progress, continue after an interrupted connection, and resume in the next start."""

import logging
from pathlib import Path

import pytest

from startup.errors import ModelNotFoundError
from startup.model import download_progress
from startup.model.obtain import resolve_model
from startup.model.request import ModelRequest
from tests.hub.faults import Fault
from tests.hub.server import HubServer
from tests.startup.model.conftest import MODEL

pytestmark = pytest.mark.thorough

WEIGHTS = bytes(range(256)) * (48 << 12)
"""48 MiB; the hub's client counts 10 MB at a time."""


@pytest.fixture(autouse=True)
def weights(hub_server: HubServer) -> None:
    hub_server.add("org/model", MODEL | {"model.safetensors": WEIGHTS})


def _download(shown: list[str] | None = None) -> Path:
    return resolve_model(ModelRequest(model="org/model"), (shown if shown is not None else []).append).path


def test_a_slow_download_reports_bytes_rate_and_time_left(
    hub_server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(download_progress.DownloadProgress.__init__, "__kwdefaults__", {"logged_every_s": 0.3})
    hub_server.link.bytes_per_s = 24 << 20
    shown: list[str] = []
    with caplog.at_level(logging.INFO, logger="startup"):
        folder = _download(shown)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any(" of 48.0 MiB, " in text and "/s, about " in text for text in shown)
    assert shown[-1] == ""
    assert "downloading org/model: " in caplog.text
    assert "downloaded 48.0 MiB of org/model in " in caplog.text


def test_an_interrupted_download_resumes(hub_server: HubServer) -> None:
    hub_server.faults.add(Fault("cut", after=len(WEIGHTS) // 2))
    folder = _download()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    (resumed_at,) = hub_server.ranges
    assert 0 < resumed_at <= len(WEIGHTS) // 2


def test_a_failed_download_is_one_line_and_the_next_start_downloads_only_the_rest(
    hub_server: HubServer,
) -> None:
    hub_server.faults.add(Fault("cut", times=None, path="*.safetensors"))
    with pytest.raises(ModelNotFoundError) as caught:
        _download()
    assert "org/model could not be downloaded" in str(caught.value)
    assert "\n" not in str(caught.value)
    hub_server.faults.clear()
    hub_server.reset()
    folder = _download()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub_server.downloads == ["org/model/model.safetensors"]
