"""The stand-in's memory keeps small pieces, on which the checks of weights after a sleep depend."""

from tests.gpu_stub.gpu_server import gpu_variables
from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT

_SCRIPT = """
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

def assert_pieces(expected):
    for offset, data in pieces.items():
        buffer = ctypes.create_string_buffer(piece)
        call("cuMemcpyDtoH_v2", buffer, ctypes.c_uint64(address.value + offset), ctypes.c_size_t(piece))
        assert buffer.raw == (data if expected else bytes(piece))

call("cuInit", 0)
call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), *[ctypes.c_uint64(0)] * 3)
map_memory()
for offset, data in pieces.items():
    call("cuMemcpyHtoD_v2", ctypes.c_uint64(address.value + offset), data, ctypes.c_size_t(piece))
call("cuMemcpyDtoH_v2", host, address, ctypes.c_size_t(size))
call("cuMemUnmap", address, ctypes.c_size_t(size))
call("cuMemRelease", handle)
map_memory()
assert_pieces(False)
call("cuMemcpyHtoD_v2", address, host, ctypes.c_size_t(size))
assert_pieces(True)
"""


def test_small_pieces_are_lost_with_their_memory_and_move_with_a_copy_of_all(home):
    """As at the levels 2 and 1 of vLLM's sleep."""
    python_output(_SCRIPT, env=gpu_variables(home), cwd=ROOT)
