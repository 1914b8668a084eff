"""A template's memory is in huge pages. This changes neither its contents nor its forks' results."""

import pytest

from startup.standby import template
from tests.support.cli import run_python

SCRIPT = """
import os, sys
from startup.standby.template import collapse_memory

blocks = [bytes([n % 251]) * 500_000 for n in range(100)]
num_pages = collapse_memory()
pid = os.fork()
if pid == 0:
    blocks[0] = b"x" * 500_000
    os._exit(not all(block == bytes([n % 251]) * 500_000 for n, block in enumerate(blocks) if n))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert all(block == bytes([n % 251]) * 500_000 for n, block in enumerate(blocks))
huge = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
flags = {flag for line in open("/proc/self/smaps") if line.startswith("VmFlags") for flag in line.split()[1:]}
print(status, num_pages, int(huge.split()[1]) // 2048, "hg" in flags)
"""


@pytest.mark.thorough
def test_memory_moves_and_keeps_its_content_here_and_in_forks():
    status, num_pages, num_huge, is_marked = run_python(SCRIPT, check=True).stdout.split()
    assert status == "0"
    assert int(num_huge) >= int(num_pages) // 2  # the fork may have split some
    assert is_marked == "False"  # later memory of these ranges is as in an executed process
    if int(num_pages) == 0:
        pytest.skip("this kernel has no MADV_COLLAPSE, or huge pages are switched off")


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_the_administrators_setting_is_obeyed(tmp_path, setting, monkeypatch):
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting)
    monkeypatch.setattr(template, "_HUGE_PAGES", path)
    assert template.collapse_memory() == 0
