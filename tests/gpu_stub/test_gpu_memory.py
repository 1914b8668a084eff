"""The stand-in's memory keeps small pieces, on which the checks of weights after a sleep depend."""

from tests.gpu_stub.gpu_server import gpu_variables
from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT

_BEGIN = """
import ctypes, random
cuda = ctypes.CDLL("libcuda.so.1")
size, piece, host = 64 << 20, 512, ctypes.create_string_buffer(64 << 20)
address, handle = ctypes.c_uint64(), ctypes.c_uint64()
properties = (ctypes.c_int * 64)()
offsets = random.Random(0).sample(range(0, size, piece), 4096)
pieces = {offset: random.randbytes(piece) for offset in offsets}

def call(name, *words):
    assert getattr(cuda, name)(*words) == 0, name

def map_memory():
    call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size), properties, ctypes.c_uint64(0))
    call("cuMemMap", address, ctypes.c_size_t(size), ctypes.c_size_t(0), handle, ctypes.c_uint64(0))

def unmap_memory():
    call("cuMemUnmap", address, ctypes.c_size_t(size))
    call("cuMemRelease", handle)

def write_pieces():
    for offset, data in pieces.items():
        call("cuMemcpyHtoD_v2", ctypes.c_uint64(address.value + offset), data, ctypes.c_size_t(piece))

def read_pieces():
    found = {}
    for offset in pieces:
        buffer = ctypes.create_string_buffer(piece)
        call("cuMemcpyDtoH_v2", buffer, ctypes.c_uint64(address.value + offset), ctypes.c_size_t(piece))
        found[offset] = buffer.raw
    return found

call("cuInit", 0)
call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), *[ctypes.c_uint64(0)] * 3)
map_memory()
write_pieces()
"""


def _run(home, script: str) -> None:
    python_output(_BEGIN + script, env=gpu_variables(home), cwd=ROOT)


def test_small_pieces_move_with_a_copy_of_all(home):
    """A copy of the whole memory restores its small pieces, as at level 1 of vLLM's sleep."""
    _run(
        home,
        """
call("cuMemcpyDtoH_v2", host, address, ctypes.c_size_t(size))
assert {offset: host[offset : offset + piece] for offset in pieces} == pieces
unmap_memory()
map_memory()
call("cuMemcpyHtoD_v2", address, host, ctypes.c_size_t(size))
assert read_pieces() == pieces
""",
    )


def test_memory_that_was_unmapped_has_lost_its_small_pieces(home):
    """After a sleep at level 2, memory has only data that is written again."""
    _run(home, "unmap_memory()\nmap_memory()\nassert not any(map(any, read_pieces().values()))")
