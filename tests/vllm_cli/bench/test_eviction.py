import mmap

import pytest

from base.machine.page_cache import memory_devices
from startup.words.errors import InputError
from tests.support.page_cache import evict, never_cached
from vllm_cli.bench.startup import Residency, evict_files, list_files

pytestmark = pytest.mark.alone
MEGABYTE = 1 << 20


def test_mapped_pages_stay_and_are_reported(tmp_path):
    if tmp_path.stat().st_dev in memory_devices():
        pytest.skip("the temporary folder lies in memory, where nothing can be evicted")
    file = tmp_path / "library"
    file.write_bytes(bytes(4 * MEGABYTE))
    evict(file)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        assert mapped[0] == mapped[MEGABYTE] == 0
        stayed = evict_files([file])
    assert 2 * mmap.PAGESIZE <= stayed.resident_bytes < MEGABYTE


def test_files_of_which_nothing_is_known_are_counted(tmp_path):
    path = never_cached()
    size = path.stat().st_size
    assert evict_files([path]) == Residency(size, 0, unknown_bytes=size)
    (tmp_path / "empty").touch()
    assert evict_files([tmp_path / "empty"]) == Residency(0, 0)


def test_files_are_listed_once_links_are_followed_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").touch()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/b")
    (tmp_path / "snapshot" / "dangling").symlink_to("../blobs/gone")
    real = (tmp_path / "blobs" / "b").resolve()
    assert list_files([tmp_path / "snapshot", tmp_path / "blobs" / "b"]) == [real]

    with pytest.raises(InputError, match=f"emptied of {tmp_path}/weights: No such file"):
        evict_files([tmp_path / "weights"])
