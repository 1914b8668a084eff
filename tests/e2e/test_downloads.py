"""Starts whose model is not on disk download it, and show the progress. Stores: `test_object_stores.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from base.status_page.page import DATA_PATH
from tests.e2e.server_process import ServerProcess
from tests.startup.port.notify_socket import NotifySocket
from tests.support.folders import short_folder
from tests.support.http_client import ask
from tests.support.hub import HubServer
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until


@pytest.fixture
def hub(tiny_llama: Path) -> Iterator[HubServer]:
    with HubServer().serving() as hub:
        hub.add("org/model", tiny_llama)
        yield hub


def settings(hub: HubServer, folder: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    return {**offline, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub")}


def test_an_empty_cache_gives_a_first_token_and_the_next_start_sends_one_request(hub, tmp_path):
    hub.link.bytes_per_s = 5_000
    with short_folder() as folder, NotifySocket(str(folder / "notify")) as notified:
        environment = settings(hub, tmp_path) | {"NOTIFY_SOCKET": notified.address}
        with ServerProcess(["org/model"], environment=environment, wait=False) as server:
            wait_until(lambda: " of " in (ask(f"{server.url}/readyz").json or {}).get("detail", ""))
            detail = ask(f"{server.url}/health").json["detail"]
            assert detail.startswith("downloading ")
            assert "/s" in detail
            assert ask(f"{server.url}{DATA_PATH}").json["progress"]["detail"].startswith("downloading ")
            wait_until(lambda: any("STATUS=" in line and ": downloading " in line for line in notified.lines))
            hub.link.bytes_per_s = None
            server.wait_ready()
            assert server.complete(max_tokens=1) == 200
            assert "downloaded " in server.log
            assert "detail" not in ask(f"{server.url}/health").body.decode()
    hub.reset()
    with ServerProcess(["org/model"], environment=settings(hub, tmp_path)) as server:
        assert server.complete(max_tokens=1) == 200
    assert [seen.path for seen in hub.requests] == ["/api/models/org/model/revision/main"]


def test_a_warm_start_serves_the_mended_template_after_the_next_one(hub, tiny_llama, tmp_path):
    """The start does not wait for the hub. Once it is ready, it checks the hub and downloads the template."""
    ref = tmp_path / "hub" / "models--org--model" / "refs" / "main"
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    chat = {"model": "org/model", "messages": [{"role": "user", "content": "a"}]}
    counts = []
    with StandbyProcess(environment=settings(hub, tmp_path)) as standby:
        for text in ("a", "a a a", "a a a"):
            commit = hub.add("org/model", files | {"chat_template.jinja": text.encode()}).id
            with ServerProcess(["org/model"], environment=settings(hub, tmp_path) | standby.environment) as server:
                counts.append(server.ask("/tokenize", chat).json["count"])
                wait_until(lambda commit=commit: ref.read_text() == commit)
    assert counts[0] == counts[1] < counts[2]
