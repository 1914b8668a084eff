"""Masks secrets in this process's command line as `ps` and /proc/PID/cmdline show it."""

import os
from collections.abc import Iterable
from pathlib import Path

_SELF = Path("/proc/self")
_ARG_START = 48
"""Number of the field in /proc/PID/stat (proc(5)); the first one after the command's name is number 3."""


def mask_in_command_line(secrets: Iterable[str]) -> bool:
    """Overwrites each secret in the command line with stars, for this process and later forks.

    Between `exec` and this call every user of the machine can read them. Returns False if the kernel does not
    allow the process to overwrite them.
    """
    hidden = {os.fsencode(secret) for secret in secrets if secret}
    try:
        begin = int((_SELF / "stat").read_text().rpartition(")")[2].split()[_ARG_START - 3])
        words = (_SELF / "cmdline").read_bytes().split(b"\0")
        with (_SELF / "mem").open("r+b", buffering=0) as memory:
            for word in words:
                secret = next((s for s in hidden if word == s or word.endswith(b"=" + s)), b"")
                memory.seek(begin + len(word) - len(secret))
                memory.write(b"*" * len(secret))
                begin += len(word) + 1
    except (OSError, ValueError, IndexError):
        return False
    return True
