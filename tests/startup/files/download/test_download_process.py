"""The helper process: kills at any time, ten helpers at once, a full disk, missing rights."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from startup.files.download.download_process import DownloadHandle, start_download
from startup.files.download.messages import DownloadError
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from tests.e2e.chaos.small_disk import SmallDisk
from tests.startup.files.download.downloads import MODEL, Downloads
from tests.support.cli import run_cli
from tests.support.hub import Fault
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

BIG = {**MODEL, **{f"model-0000{n}-of-00004.safetensors": os.urandom(2 << 20) for n in range(1, 5)}}
BIG.pop("model.safetensors")
BIG_BYTES = sum(map(len, BIG.values()))


@pytest.fixture
def big(downloads: Downloads) -> Downloads:
    """A model of 8 MiB in four shards."""
    downloads.hub.add("org/model", BIG)
    return downloads


def start(downloads: Downloads, shown: list[str] | None = None, **settings: Any) -> DownloadHandle:
    show = (shown if shown is not None else []).append
    return start_download([downloads.download()], show, endpoints=(downloads.hub.url,), **settings)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.smoke
def test_a_helper_downloads_and_reports(big):
    big.hub.link.bytes_per_s = 1 << 20
    shown: list[str] = []
    with start(big, shown) as handle:
        wait_until(lambda: any(text.startswith("downloading ") and "/s" in text for text in shown))
        big.hub.link.bytes_per_s = None
        (folder,) = handle.result()
        assert handle.report.fetched_bytes == BIG_BYTES
        assert {name for name, _, _ in handle.report.spans} == {"download_start", "download_list", "download_fetch"}
    assert read(folder) == BIG
    assert shown[-1] == ""


def test_a_hub_that_cannot_be_reached_is_known_before_the_result_and_one_that_can_is_not_given_up(big):
    """The warning comes from another thread. A download that its owner ends is no failure to warn of."""
    warned: list[DownloadError] = []
    with start_download([big.download()], warn=warned.append, endpoints=("http://127.0.0.1:1",)) as handle:
        wait_until(lambda: bool(warned))
        with pytest.raises(DownloadError, match="the hub at http://127.0.0.1:1 cannot be reached"):
            handle.result()
    big.hub.may_answer.clear()
    with start(big) as handle:
        wait_until(lambda: bool(big.hub.requests))
        assert handle.failure is None
        big.hub.may_answer.set()
        handle.result()
    assert [str(err).partition(" cannot")[0] for err in warned] == [
        "org/model is not cached, and the hub at http://127.0.0.1:1"
    ]


def test_a_refusal_reaches_the_launcher_and_the_token_no_command_line(big):
    big.hub.private.add("org/model")
    big.hub.may_answer.clear()
    with start_download([big.download(token="hf_wrong")], endpoints=(big.hub.url,)) as handle:
        wait_until(lambda: bool(big.hub.requests))
        pid = handle._helper.pid
        assert b"hf_wrong" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"hf_wrong" not in Path(f"/proc/{pid}/environ").read_bytes()
        big.hub.may_answer.set()
        with pytest.raises(DownloadError, match="the token may not see it") as caught:
            handle.result()
        assert caught.value.kind == "refused"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_leave_no_wrong_file_and_no_leftovers(big, num_kills):
    """Helpers are killed at random times, each with a new cache, and started again."""
    generator = random.Random(24)
    for number in range(num_kills):
        big.cache = big.cache.with_name(f"hub-{number}")
        big.hub.sent.clear()
        big.hub.link.bytes_per_s = 16 << 20
        wanted_bytes = generator.random() * BIG_BYTES
        handle = start(big)
        wait_until(lambda least=wanted_bytes: big.hub.sent.total() >= least)
        time.sleep(generator.random() * 0.02)
        handle.close()
        place = plan_files(ModelRequest(model="org/model", download_dir=str(big.cache))).model
        assert place.kind == "hub" or (place.folder is not None and read(place.folder) == BIG)
        big.hub.link.bytes_per_s = None
        with start(big) as second:
            (folder,) = second.result()
        assert read(folder) == BIG
        assert not list(big.cache.rglob("*.incomplete"))


def test_ten_starts_at_once_fetch_one_model(big):
    big.hub.link.bytes_per_s = 256 << 10
    handles = [start(big) for _ in range(10)]
    wait_until(lambda: sum(seen.path.endswith("/revision/main") for seen in big.hub.requests) == 10)
    big.hub.link.bytes_per_s = None
    folders = {handle.result() for handle in handles}
    for handle in handles:
        handle.close()
    assert len(folders) == 1
    assert read(next(iter(folders))[0]) == BIG
    assert big.hub.sent.total() == BIG_BYTES


def test_the_lock_of_a_dead_owner_is_free(big):
    lock = big.cache / ".locks" / "models--org--model" / "vllm-cli.lock"
    lock.parent.mkdir(parents=True)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE)
    owner.stdout.readline()
    shown: list[str] = []
    with start(big, shown) as handle:
        wait_until(lambda: any(" of 8.0 MiB" in text for text in shown))
        assert not big.hub.downloads
        owner.kill()
        assert read(handle.result()[0]) == BIG
    owner.stdout.close()
    owner.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 3 MiB, mounted on the folder `disk`."""
    (tmp_path / "disk").mkdir()
    with SmallDisk(tmp_path / "disk", 3 << 20) as disk:
        yield disk


def prefetch(disk: SmallDisk, folder: Path, model: str = "org/model") -> tuple[int, dict[str, Any]]:
    """Downloads into a folder of the disk. Returns exit code and report."""
    arguments = ("prefetch", model, "--engine", "embedded", "--download-dir", folder, "--download-only", "--json")
    done = run_cli(*arguments, launcher=disk.launcher)
    return done.returncode, json.loads(done.stdout)


def test_a_disk_that_fills_up_meanwhile_is_reported(downloads, disk, tmp_path):
    downloads.hub.faults.add(Fault("stall", path="*.safetensors", after=1 << 19))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(prefetch, disk, tmp_path / "disk" / "hub")
        wait_until(lambda: downloads.hub.sent["org/model/model.safetensors"] >= 1 << 19)
        disk.fill(but=1 << 16)
        code, report = running.result()
    assert (code, report["state"]) == (6, "no_space")
    disk.make_room()
    assert prefetch(disk, tmp_path / "disk" / "hub")[0] == 0


def test_a_read_only_cache_is_named_and_a_complete_model_in_it_is_used(downloads, disk, tmp_path):
    folder = tmp_path / "disk" / "hub"
    assert prefetch(disk, folder)[0] == 0
    subprocess.run([*disk.launcher, "mount", "-o", "remount,bind,ro", str(tmp_path / "disk")], check=True)
    assert prefetch(disk, folder)[0] == 0
    downloads.hub.add("org/other", MODEL)
    code, report = prefetch(disk, folder, "org/other")
    assert code == 3
    assert "cannot be written to (Read-only file system): give another --download-dir" in report["reason"]


def test_a_file_in_xet_storage_is_requested_there(downloads):
    """No test server has the storage, so the request is refused."""
    downloads.hub.is_xet = True
    with start(downloads) as handle, pytest.raises(DownloadError):
        handle.result()
    assert [seen for seen in downloads.hub.requests if "xet-read-token" in seen.path]
