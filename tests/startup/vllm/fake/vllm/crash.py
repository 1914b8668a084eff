"""Ends a process of this fake as FAKE_VLLM_CRASH says: `PLACE:HOW`, such as `worker 0:SIGKILL`."""

import os
import signal


class CrashError(Exception):
    pass


def crash_at(place: str) -> None:
    wanted, _, how = os.environ.get("FAKE_VLLM_CRASH", "").partition(":")
    if wanted == place:
        _crash(how)


def _crash(how: str) -> None:
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    elif how.startswith("exit "):
        os._exit(int(how.removeprefix("exit ")))
    elif how.startswith("SystemExit "):
        raise SystemExit(int(how.removeprefix("SystemExit ")))
    else:
        raise CrashError(how)
