"""oneDNN's kernel caches are bounded in the engine, and the user's own setting takes precedence."""

import os
import subprocess
import sys

import pytest

from startup.engine.onednn import limit_kernel_caches

ONEDNN, FORMER, IDEEP = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"

MEASURE = """if True:
    import ctypes, sys
    from startup.engine.onednn import limit_kernel_caches
    if sys.argv[1] == "bound":
        limit_kernel_caches()
    import torch

    class Heap(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        _fields_ = [(name, ctypes.c_size_t) for name in names]

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Heap
    torch.set_num_threads(1)
    held = []
    with torch.inference_mode():
        for width in range(1, 451):
            weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(32, 16 * width).bfloat16())
            torch.ops.mkldnn._linear_pointwise(torch.ones(8, 16 * width).bfloat16(), weight, None, "none", [], "")
            del weight
            held.append(libc.mallinfo2().uordblks)
    print(held[449] - held[299])
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ONEDNN, FORMER, IDEEP):
        monkeypatch.delenv(name, raising=False)


def test_the_bounds_are_set_for_children() -> None:
    limit_kernel_caches()
    assert (os.environ[ONEDNN], os.environ[IDEEP]) == ("128", "128")


@pytest.mark.parametrize(("name", "expected"), [(ONEDNN, ("5", "128")), (FORMER, (None, "128")), (IDEEP, ("128", "5"))])
def test_the_users_setting_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str, str]
) -> None:
    monkeypatch.setenv(name, "5")
    limit_kernel_caches()
    assert (os.environ.get(ONEDNN), os.environ.get(IDEEP)) == expected


@pytest.mark.slow
def test_new_shapes_take_no_more_memory_once_the_bound_is_reached() -> None:
    """From the 300th shape to the 450th: more than the bound, fewer than the default."""
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not multiply in bfloat16 on this processor")
    assert _heap_growth("bound") < _heap_growth("free") / 4


def _heap_growth(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)
