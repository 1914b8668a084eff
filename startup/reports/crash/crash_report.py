"""The digest of a crash: which process failed in which phase, the cause, the advice, and the complete log.

The digest is the last output of the server. Probes, the service manager and Kubernetes also get it.
"""

import logging
import os
import sys
import time
from contextlib import suppress
from errno import ENOSPC
from itertools import chain
from pathlib import Path
from typing import Any, Final

from base.machine.files import write_whole
from envs.redaction import hide_quoted
from envs.registry import env
from startup.errors import CrashError
from startup.logs.options import LogFormat
from startup.reports.crash.explanation import Cause, explainer, shown
from startup.reports.crash.output_record import KEPT_BYTES, LEFT_OUT, OutputRecord
from startup.storage.caches import cache_folder

logger = logging.getLogger(__name__)

_FOLDER: Final = "failed"
_MOST_LOGS: Final = 10
_MOST_TERMINATION_BYTES: Final = 4096
"""The most bytes of the file that Kubernetes shows (terminationMessagePath)."""


def keep_log(record: OutputRecord) -> Path | None:
    """Writes the output without secrets to a file for this user, and removes old files. None on errors."""
    text = ""
    with suppress(OSError):
        text = record.file.read_bytes().decode("utf-8", "replace")
    if len(text) > 2 * KEPT_BYTES:
        text = f"{text[:KEPT_BYTES]}\n{LEFT_OUT}{text[-KEPT_BYTES:]}"
    # Keeps only the last state of a progress bar, so that lines count as in the digest.
    last_states = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    lines = map(shown, last_states)
    folder = cache_folder() / _FOLDER
    path = folder / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}.log"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, hide_quoted("\n".join(lines), sys.argv), mode=0o600)
        for old in sorted(folder.glob("*.log"))[:-_MOST_LOGS]:
            old.unlink(missing_ok=True)
        record.end_shortening()
        return path
    return None


def name_log(record: OutputRecord) -> None:
    """Logs the path of the complete log, because the terminal has shown tracebacks without their frames.

    If no file can be written, writes the complete log to standard error.
    """
    if (log := keep_log(record)) is not None:
        logger.warning("tracebacks above are shortened. Complete log: %s", log)
        return
    with suppress(OSError):
        sys.stderr.write(record.file.read_bytes()[-KEPT_BYTES:].decode("utf-8", "replace"))


def write_termination_message(text: str) -> None:
    """Writes why the server has ended to the file that Kubernetes reads. Elsewhere, it does nothing."""
    path = env.VCLI_TERMINATION_LOG.get()
    masked = hide_quoted(text, sys.argv).encode()[:_MOST_TERMINATION_BYTES]
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "wb", buffering=0) as file:  # noqa: PTH123
            file.write(masked)


def find_crash(record: OutputRecord, more: str = "") -> Cause | None:
    """Finds why the server has ended, in its output and the lines `more`."""
    cause = explainer().find_cause(chain(record.lines(), more.splitlines()))
    return None if cause and cause.is_guess else cause


def describe_crash(record: OutputRecord, process: str, phase: str, message: str, *, is_embedded: bool = False) -> Cause:
    """Finds why the server has ended. If its output shows no cause, the error `message` is the cause.

    Args:
        record: the output of the server.
        process: the process that the message is about.
        phase: the phase of the start in which this process failed.
        message: an error message about this process.
        is_embedded: whether the embedded engine has failed, whose messages contain advice.
    """
    found = find_crash(record)
    if record.is_cut_off:  # an error in it may be only a consequence
        found, message = None, f"[Errno {ENOSPC}] {os.strerror(ENOSPC)}: '{record.folder}'"
    if found is None or found.is_stop or found.text == message:
        found = explainer().describe_message(process, message, has_advice=is_embedded)
    return found.completed(phase, is_embedded=is_embedded)


def build_error(cause: Cause, record: OutputRecord, *, exit_code: int, log_format: LogFormat) -> CrashError:
    """Returns the error that ends the program, with at most five lines. Also writes the log to a file."""
    log = keep_log(record)
    text = "\n".join([*cause.lines(), *([f"Log: {log}"] if log else [])])
    fields = {**cause.to_dict(), "log": str(log) if log else None}
    json_line = _to_json_line(text, fields, record.process_name) if log_format == "json" else None
    return CrashError(text, exit_code=exit_code, json_line=json_line, cause=cause.name)


def _to_json_line(text: str, digest: dict[str, Any], role: str) -> str:
    from startup.logs.json_lines import JsonFormatter

    record = logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (text,), None)
    record.code, record.digest = digest["code"], digest
    return JsonFormatter(role, None).format(record)
