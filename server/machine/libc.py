"""The C library, for system calls that Python does not have."""

import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctypes import CDLL


@cache
def load_libc() -> "CDLL":
    """The library with the types of the arguments and results that are not plain numbers.

    ctypes is imported here: the start of a front process and the prefetch's helper process are timed.
    """
    import ctypes as c  # noqa: PLC0415

    libc = c.CDLL(None, use_errno=True)
    libc.mmap.restype = c.c_void_p
    libc.mmap.argtypes = (c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_int64)
    libc.munmap.argtypes = (c.c_void_p, c.c_size_t)
    libc.mincore.argtypes = (c.c_void_p, c.c_size_t, c.c_char_p)
    libc.madvise.argtypes = (c.c_void_p, c.c_size_t, c.c_int)
    libc.fallocate.argtypes = (c.c_int, c.c_int, c.c_int64, c.c_int64)
    libc.prctl.argtypes = (c.c_int, *[c.c_void_p] * 4)
    libc.sbrk.restype = c.c_void_p
    return libc


def check(result: int, call: str) -> None:
    """Raises OSError for a result other than 0."""
    if result != 0:
        raise last_error(call)


def last_error(call: str) -> OSError:
    """The error of the last call on this thread."""
    import ctypes  # noqa: PLC0415

    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def prctl(option: int, *arguments: Any) -> None:
    """Changes a property of this process (prctl(2)); raises OSError."""
    check(load_libc().prctl(option, *arguments, *[None] * (4 - len(arguments))), "prctl")
