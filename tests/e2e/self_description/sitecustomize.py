"""Every Python program with this folder on its path describes itself when it reads a model's file.

The API process and the engine process of a server each write a JSON file into the folder DESCRIBE_IN. An
import in this module keeps a file open, as the import of `ctypes` does with libffi 3.8.
"""

import os
import sys
from typing import Any

_READ_BY = {"engine": "generation_config.json", "api": "tokenizer.json"}
_done: list[str] = []
_kept: list[int] = []


def _describe(role: str) -> dict[str, Any]:
    import gc
    import locale
    import multiprocessing
    import random
    import re
    import resource
    import signal
    import tempfile
    import threading
    import time
    from pathlib import Path

    described: dict[str, Any] = {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "path": sys.path,
        "flags": str(sys.flags),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "umask": re.findall(r"Umask:\t(\d+)", Path("/proc/self/status").read_text()),
        "files": [str(Path(f"/proc/self/fd/{number}").readlink()) for number in (0, 3) if role == "api"],
        "executable": sys.executable,
        "prefix": sys.prefix,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "pycache_prefix": sys.pycache_prefix,
        "recursion": sys.getrecursionlimit(),
        "switch_interval": sys.getswitchinterval(),
        "locale": [locale.setlocale(kind) for kind in range(7)],
        "encodings": [locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "streams": [
            stream and (stream.encoding, stream.errors, stream.line_buffering)
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "handlers": {
            number: str(signal.getsignal(number)).split(" at 0x", maxsplit=1)[0]
            for number in signal.valid_signals()
            if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        },
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name},
        "affinity": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "temporary": tempfile.gettempdir(),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "collects": gc.isenabled(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "time_zone": time.tzname,
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        import numpy

        described["torch"] = [
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            str(torch.get_default_dtype()),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ]
        described["random"] = [random.random(), torch.initial_seed(), float(torch.rand(1)), numpy.random.rand()]
    return described


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import" and arguments[0] == "ctypes" and not _kept:
        _kept.append(os.open("/dev/null", os.O_RDONLY))
    if event != "open" or _done:
        return
    current_process = getattr(sys.modules.get("multiprocessing.process"), "current_process", None)
    role = "engine" if current_process and current_process().name == "vllm-cli-engine" else "api"
    if str(arguments[0]).endswith(_READ_BY[role]) and (role == "engine" or "serve" in sys.argv):
        import json
        from pathlib import Path

        _done.append(role)
        path = Path(os.environ["DESCRIBE_IN"]) / f"{role}.part"
        path.write_text(json.dumps(_describe(role)))
        path.rename(path.with_suffix(""))


sys.addaudithook(_watch)
