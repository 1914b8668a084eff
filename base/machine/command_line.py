"""Masks or replaces this process's command line, which `ps` and /proc/PID/cmdline show."""

import os
import sys
from collections.abc import Iterable

from envs.redaction import hide_in_arguments

_ARG_START = 48
"""The number of the field `arg_start` in /proc/PID/stat (proc(5)), where the state is number 3."""


def mask_command_line() -> None:
    """Overwrites the secrets in the command line with stars, for this process and its later forks.

    Until this call, every user of the machine can read the secrets. They stay readable if the kernel does not
    let the process overwrite them. `is_visible` then returns True.
    """
    unmasked = b"".join(os.fsencode(argument) + b"\0" for argument in sys.orig_argv)
    if masked_arguments(sys.orig_argv) == unmasked:
        return
    try:
        arguments = read_command_line().removesuffix(b"\0").split(b"\0")
        overwrite_command_line(masked_arguments(map(os.fsdecode, arguments)))
    except (OSError, ValueError, IndexError):
        return


def masked_arguments(arguments: Iterable[str]) -> bytes:
    """The arguments with stars in place of secrets. NUL follows each argument."""
    hidden = hide_in_arguments(arguments, lambda secret: "*" * len(os.fsencode(secret)))
    return b"".join(os.fsencode(argument) + b"\0" for argument in hidden)


def is_visible(secrets: Iterable[str]) -> bool:
    """Whether one of these secrets can be read in the command line."""
    hidden = tuple(os.fsencode(secret) for secret in secrets if secret)
    shown = read_command_line().split(b"\0")
    return any(argument == secret or argument.endswith(b"=" + secret) for argument in shown for secret in hidden)


def read_command_line() -> bytes:
    """The arguments of this process's command line. NUL follows each argument."""
    with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123 - pathlib would delay a client's start
        return file.read()


def overwrite_command_line(content: bytes) -> None:
    """Overwrites the beginning of this process's command line, which must be long enough. Raises OSError."""
    from base.machine.processes import stat_fields  # noqa: PLC0415 - few command lines have secrets

    begin = int(stat_fields("self")[_ARG_START - 3])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        memory.seek(begin)
        memory.write(content)


def replace_command_line(content: bytes) -> None:
    """Replaces this process's command line by `content`, which may have any length.

    Copies `content` into new memory, and passes the address to the kernel (prctl(2), PR_SET_MM_MAP). If the
    kernel lacks this call (CONFIG_CHECKPOINT_RESTORE), the old command line stays.
    """
    try:
        _refer_kernel_to(content)
    except (OSError, ValueError, IndexError):
        return


def _refer_kernel_to(content: bytes) -> None:
    import ctypes  # noqa: PLC0415 - slow to import for a client
    import mmap  # noqa: PLC0415
    import struct  # noqa: PLC0415

    from base.machine.libc import load_libc, prctl  # noqa: PLC0415
    from base.machine.processes import stat_fields  # noqa: PLC0415

    number = [0, 0, 0, 0, *map(int, stat_fields("self")[1:])]
    with open("/proc/self/auxv", "rb") as file:  # noqa: PTH123
        vector = file.read()
    area = mmap.mmap(-1, max(len(content), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.write(content)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(area))
    auxiliary = ctypes.create_string_buffer(vector, len(vector))
    # struct prctl_mm_map: code, data, brk, stack, arguments, environment, auxiliary vector, executable
    layout = struct.pack(
        "=11QQIi",
        number[26],
        number[27],
        number[45],
        number[46],
        number[47],
        load_libc().sbrk(0),
        number[28],
        begin,
        begin + len(content),
        number[50],
        number[51],
        ctypes.addressof(auxiliary),
        len(vector),
        -1,
    )
    prctl(_PR_SET_MM, _PR_SET_MM_MAP, layout, len(layout))
    _kept.append(area)


_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
_kept: list[object] = []
"""The memory of the new command line. It must not be freed while the process runs."""
