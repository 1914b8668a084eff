"""A kept value is used while key, stamps and files are the same. Faults of files and folders do no harm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from base.machine.files import write_whole
from startup.storage import caches
from startup.storage.caches import CACHE, CachedValue, read_all

_KEPT = CachedValue("things", ("key", 1), "stamp")

_MANY = """
import sys
from startup.storage.caches import CachedValue
for number in range(50):
    CachedValue("things", ("key", 1), "stamp").write([sys.argv[1], number] * 1000)
"""

_FIRST_USES = """
import sys, threading
from dataclasses import make_dataclass
from startup.storage.caches import of_type
sys.setswitchinterval(1e-6)
for _ in range(400):
    inner = make_dataclass("Inner", [(f"f{n}", dict[str, list[int]]) for n in range(12)])
    read, start = of_type(make_dataclass("Outer", [("items", list[inner])])), threading.Barrier(4)
    def run():
        start.wait()
        assert read({"items": [{f"f{n}": {} for n in range(12)}]}).items[0].f1 == {}
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vllm_cli"


def test_a_value_is_read_with_the_same_key_and_stamps_only(cache):
    assert _KEPT.read(dict) is None
    _KEPT.write({"a": [1]})
    assert _KEPT.read(dict) == {"a": [1]}
    assert CachedValue("things", ("key", 2), "stamp").read(dict) is None
    assert CachedValue("things", ("key", 1), "other").read(dict) is None
    CachedValue("things", ("key", 1), "other").write({"b": 2})
    assert _KEPT.read(dict) is None
    assert [path.parent for path in cache.rglob("*.json")] == [cache / "things"]
    _KEPT.remove()
    _KEPT.remove()
    assert list((cache / "things").iterdir()) == []


def test_a_value_is_outdated_once_a_file_has_changed_that_it_was_made_from(cache, tmp_path):
    source = tmp_path / "source"
    source.write_text("old")
    _KEPT.write("value", [str(source), str(tmp_path / "missing")])
    assert _KEPT.read(str) == "value"
    source.write_text("newer")
    assert _KEPT.read(str) is None
    _KEPT.write("value", [str(source), str(tmp_path / "missing")])
    (tmp_path / "missing").touch()
    assert _KEPT.read(str) is None


def test_the_baked_value_is_read_until_the_user_has_a_valid_one(baked, monkeypatch):
    with monkeypatch.context() as build:
        build.setenv("VLLM_CACHE_ROOT", str(baked / CACHE))
        _KEPT.write("baked")
        CachedValue("things", "other").write("baked, too")
    file = baked / CACHE / "vllm_cli" / "things" / _KEPT.path.name
    assert (_KEPT.read(str), _KEPT.read(str, is_own=True)) == ("baked", None)
    CachedValue("things", ("key", 1), "older").write("outdated")
    assert _KEPT.read(str) == "baked"
    _KEPT.write("own")
    assert _KEPT.read(str) == "own"
    assert sorted(read_all("things", str)) == ["baked", "baked, too", "own"]
    assert next(read_all("things", str)) == "own"
    _KEPT.remove()
    assert json.loads(file.read_text())["value"] == "baked"


def test_a_value_that_is_taken_is_gone_until_it_is_written_again(baked, cache, monkeypatch):
    with monkeypatch.context() as build:
        build.setenv("VLLM_CACHE_ROOT", str(baked / CACHE))
        _KEPT.write("baked")
    assert (_KEPT.take(str), _KEPT.take(str)) == ("baked", None)
    _KEPT.write("own")
    assert (_KEPT.take(str), _KEPT.take(str)) == ("own", None)
    _KEPT.write("own")
    assert _KEPT.take(str) == "own"
    _KEPT.write("own")
    _KEPT.hide()
    assert (_KEPT.take(str), _KEPT.read(str)) == (None, "baked")


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"\xff\xfe{}", b"[1]", b'{"stamps":"x"}', b'{"stamps":"%s","files":{"/":1},"value":{}}',
        b'{"stamps":"%s","files":{},"value":7}', b'{"stamps":"%s","files":{},"val', b"[" * 200_000,
        b'"%s"' % (b"x" * (17 << 20)),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_file_counts_as_missing_and_is_replaced(cache, damage, caplog):
    _KEPT.write({})
    stamps = json.loads(_KEPT.path.read_bytes())["stamps"].encode()
    _KEPT.path.write_bytes(damage.replace(b"%s", stamps))
    assert _KEPT.read(dict) is None
    assert list(read_all("things", dict)) == []
    _KEPT.write({"a": 1})
    assert _KEPT.read(dict) == {"a": 1}
    assert caplog.messages == []


@pytest.mark.parametrize("obstacle", ["folder", "pipe", "file for folder", "read-only"])
def test_where_no_file_can_be_written_nothing_is_kept(cache, obstacle):
    if obstacle == "file for folder":
        cache.parent.write_text("")
    elif obstacle == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write to each folder")
        cache.mkdir(parents=True, mode=0o500)
    else:
        _KEPT.path.parent.mkdir(parents=True)
        _KEPT.path.mkdir() if obstacle == "folder" else os.mkfifo(_KEPT.path)
    _KEPT.write("value")
    assert _KEPT.read(str) is None
    _KEPT.remove()


@pytest.mark.parametrize("mode", [0o664, 0o646], ids=["group", "others"])
def test_a_file_that_others_can_write_to_is_not_used(mode, cache, caplog):
    """A kept file may name modules and libraries that a start loads."""
    before = os.umask(0)
    try:
        _KEPT.write("value")
    finally:
        os.umask(before)
    assert _KEPT.read(str) == "value"
    _KEPT.path.chmod(mode)
    assert _KEPT.read(str) is None
    assert f"other users can write to it (mode {mode:04o})" in caplog.text
    assert list(read_all("things", str)) == []


def test_a_value_of_the_user_ages_and_a_baked_one_does_not(cache, baked, monkeypatch):
    cached = CachedValue("things", ("key", 1), "stamp", lasts_s=3600)
    with monkeypatch.context() as build:
        build.setenv("VLLM_CACHE_ROOT", str(baked / CACHE))
        cached.write("baked")
        os.utime(cached.path, (0, 0))
    assert (cached.read(str), cached.age_s) == ("baked", None)
    cached.write("own")
    for age_s, value in ((0, "own"), (3000, "own"), (3700, "baked"), (-3700, "baked")):
        cached.write("own")
        os.utime(cached.path, (cached.path.stat().st_mtime - age_s,) * 2)
        assert cached.read(str) == value
    assert _KEPT.read(str) == "own"


def test_files_that_get_another_owner_are_not_kept_and_the_user_is_told_once(cache, monkeypatch, caplog):
    """On NFS, root's files belong to `nobody`. Other users may act as `nobody`."""
    if os.geteuid():
        pytest.skip("needs another owner")

    def write_squashed(path: Path, *rest: Any, **options: Any) -> None:
        write_whole(path, *rest, **options)
        os.chown(path, 65534, 65534)

    with monkeypatch.context() as nfs:
        nfs.setattr(caches, "write_whole", write_squashed)
        for _ in range(3):
            _KEPT.write("value")
            assert _KEPT.read(str) is None
    told = f"{_KEPT.path} belongs to another user (65534), so nothing is kept there: set VLLM_CACHE_ROOT"
    assert caplog.messages == [told]
    _KEPT.write("value")
    assert _KEPT.read(str) == "value"


@pytest.mark.thorough
def test_the_values_that_were_written_longest_ago_are_removed(cache):
    for number in range(210):
        CachedValue("things", number).write(number)
        os.utime(CachedValue("things", number).path, (number, number))
    assert list(read_all("things", int)) == list(range(209, 9, -1))


@pytest.mark.thorough
def test_readers_see_whole_values_while_others_write(cache):
    _KEPT.write(["", 0])
    writers = [subprocess.Popen((sys.executable, "-c", _MANY, str(number))) for number in range(3)]
    while any(writer.poll() is None for writer in writers):
        assert _KEPT.read(list) is not None
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [path.name for path in _KEPT.path.parent.iterdir()] == [_KEPT.path.name]


@pytest.mark.thorough
def test_threads_may_read_values_of_a_type_at_the_same_time():
    """msgspec examines a class when it is first used. Threads that check several models do so at once."""
    done = subprocess.run((sys.executable, "-c", _FIRST_USES), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
