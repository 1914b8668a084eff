"""The helper process: kills at any time, ten helpers at once, a full disk, missing rights."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from startup.files.download.messages import DownloadError, DownloadProgress
from startup.files.download.process import DownloadHandle, start_download
from tests.e2e.chaos.small_disk import SmallDisk
from tests.startup.files.download.downloads import MODEL, Downloads
from tests.support.hub import Fault
from tests.support.waiting import wait_until

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
        assert handle.report is not None
        assert handle.report.fetched_bytes == BIG_BYTES
        assert {name for name, _, _ in handle.report.spans} == {"download_start", "download_list", "download_fetch"}
    assert read(folder) == BIG
    assert shown[-1] == ""


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


def _kill_and_start_again(downloads: Downloads, num_kills: int) -> int:
    """Kills helpers at random times, each with a new cache. Returns the bytes that were fetched twice."""
    generator = random.Random(24)
    num_wasted = 0
    for number in range(num_kills):
        downloads.cache = downloads.cache.with_name(f"hub-{number}")
        downloads.hub.sent.clear()
        downloads.hub.link.bytes_per_s = 16 << 20
        wanted_bytes = generator.random() * BIG_BYTES
        handle = start(downloads)
        wait_until(lambda least=wanted_bytes: downloads.hub.sent.total() >= least)
        time.sleep(generator.random() * 0.02)
        handle.close()
        _assert_nothing_is_half(downloads.cache)
        downloads.hub.link.bytes_per_s = None
        with start(downloads) as second:
            (folder,) = second.result()
        assert read(folder) == BIG
        num_wasted += downloads.hub.sent.total() - BIG_BYTES
    return num_wasted


def _assert_nothing_is_half(cache: Path) -> None:
    """Checks that each file that a later start or the hub's client would use is complete."""
    contents = {bytes(content) for content in BIG.values()}
    for blob in cache.glob("models--*/blobs/*"):
        assert blob.name.endswith(".incomplete") or blob.read_bytes() in contents
    snapshots = list(cache.glob("models--*/snapshots/*"))
    assert all(read(snapshot) == BIG for snapshot in snapshots)


@pytest.mark.thorough
def test_ten_kills_leave_no_wrong_file_and_waste_little(big):
    """A kill loses the bytes in transit, up to 512 KiB for each of four files."""
    assert _kill_and_start_again(big, 10) < 10 * 4 * (512 << 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_leave_no_wrong_file(big):
    _kill_and_start_again(big, 100)


@pytest.mark.thorough
def test_ten_starts_at_once_fetch_one_model(big):
    big.hub.link.bytes_per_s = 256 << 10
    shown: list[list[str]] = [[] for _ in range(10)]
    handles = [start(big, texts) for texts in shown]
    wait_until(lambda: sum(any("another start is downloading" in text for text in texts) for texts in shown) == 9)
    big.hub.link.bytes_per_s = None
    folders = {handle.result() for handle in handles}
    for handle in handles:
        handle.close()
    assert len(folders) == 1
    assert read(next(iter(folders))[0]) == BIG
    assert big.hub.sent.total() <= 1.02 * BIG_BYTES


def test_the_lock_of_a_dead_owner_is_free(big):
    lock = big.cache / ".locks" / "models--org--model" / "vllm-cli.lock"
    lock.parent.mkdir(parents=True)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    shown: list[str] = []
    with start(big, shown) as handle:
        wait_until(lambda: any("another start is downloading" in text for text in shown))
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


def test_a_disk_without_room_is_told_before_anything_is_fetched(big, disk, tmp_path):
    big.cache = disk.path_inside(tmp_path / "disk") / "hub"
    report = big.run()
    assert report.failure == "disk"
    assert report.reason.startswith("org/model could not be downloaded: 8.0 MiB are missing and ")
    assert "free space, or give another --download-dir" in report.reason
    assert not big.hub.downloads


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_file(downloads, disk, tmp_path, monkeypatch):
    downloads.cache = disk.path_inside(tmp_path / "disk") / "hub"
    downloads.hub.link.bytes_per_s = 1 << 20
    take = downloads._take

    def fill(event: object) -> None:
        take(event)
        is_half = isinstance(event, DownloadProgress) and event.done_bytes > 100_000
        if is_half and not disk.path_inside(ballast).exists():
            disk.fill(but=1 << 16)

    ballast = tmp_path / "disk" / "ballast"
    monkeypatch.setattr(downloads, "_take", fill)
    report = downloads.run()
    assert report.failure == "disk"
    assert not list(downloads.cache.glob("models--*/snapshots/*"))
    disk.make_room()
    monkeypatch.setattr(downloads, "_take", take)
    downloads.hub.link.bytes_per_s = None
    second = downloads.run()
    assert downloads.content(second) == MODEL
    assert second.fetched_bytes < len(MODEL["model.safetensors"])


def test_a_read_only_cache_is_named_and_a_complete_model_in_it_is_used(downloads, disk, tmp_path):
    downloads.cache = disk.path_inside(tmp_path / "disk") / "hub"
    folder = downloads.run().folders
    subprocess.run([*disk.launcher, "mount", "-o", "remount,bind,ro", str(tmp_path / "disk")], check=True)
    assert downloads.run().folders == folder
    downloads.hub.add("org/other", MODEL)
    report = downloads.run("org/other")
    assert report.failure == "cache"
    assert "cannot be written to (Read-only file system): give another --download-dir" in report.reason


def test_a_file_in_xet_storage_is_fetched_and_resumed_over_plain_http(downloads):
    downloads.hub.is_xet = True
    downloads.hub.faults.add(Fault("cut", path="*.safetensors", after=300_000))
    assert downloads.content(downloads.run()) == MODEL
    assert len(downloads.hub.ranges) == 1
    assert not [seen for seen in downloads.hub.requests if "xet" in seen.path]
