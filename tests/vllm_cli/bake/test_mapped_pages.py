"""The pages that processes have used of a file they have mapped are recorded."""

import mmap
import os

from vllm_cli.bake.mapped_pages import used_pages

_MIB = 1 << 20


def test_only_the_used_parts_of_a_mapped_file_are_recorded(tmp_path):
    path = tmp_path / "library"
    path.write_bytes(bytes(32 * _MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        assert mapped[0] == mapped[24 * _MIB] == 0
        (found,) = (files for files in used_pages(os.getpid()) if files.path == str(path))
        assert [files for files in used_pages(os.getpid(), but=(tmp_path,)) if files.path == str(path)] == []
    assert found.size == 32 * _MIB
    first, second = found.ranges
    assert first[0] == 0
    assert second[0] <= 24 * _MIB < sum(second)
    assert sum(length for _, length in found.ranges) < 16 * _MIB  # the kernel maps up to a huge page around each


def test_the_end_of_a_file_is_not_exceeded(tmp_path):
    path = tmp_path / "library"
    path.write_bytes(bytes(5000))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not any(mapped[:])
        (found,) = (files for files in used_pages(os.getpid()) if files.path == str(path))
    assert found.ranges == ((0, 5000),)
