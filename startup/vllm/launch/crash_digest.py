"""Runs vLLM and turns its failure into the digest of the crash, the last lines of this program."""

import sys
from collections.abc import Callable
from typing import Final

from server.exit_codes import ENGINE_DIED, START_FAILED, USAGE
from startup.crash.output_record import OutputRecord
from startup.logs.options import LogFormat
from startup.processes.quick_end import end_without_finalizing

_API_SERVER: Final = "APIServer"
"""vLLM's name of this process."""


class CrashDigest:
    """Of one start; used on the main thread of the launcher, which is vLLM's API server."""

    def __init__(self, record: OutputRecord, log_format: LogFormat) -> None:
        self._record = record
        self._log_format = log_format
        self._has_engine_died = False
        record.begin_process(_API_SERVER, is_watched=False)

    def note_engine_death(self) -> None:
        """vLLM will return, with exit code 0, because its engine has died."""
        self._has_engine_died = True

    def run(self, run_vllm: Callable[[], int], is_ready: Callable[[], bool], *, has_api_server: bool) -> int:
        """Returns vLLM's exit code if it was stopped or its command line is wrong.

        Args:
            run_vllm: returns only after the end of the engine if this node has no API server.
            is_ready: whether vLLM has accepted requests.
            has_api_server: whether this node has one.

        Raises:
            CrashError: a process has failed; exit code 3 before readiness, else vLLM's.
        """
        code: int | str | None
        try:
            code = run_vllm()
        except SystemExit as err:
            code = err.code if isinstance(err.code, int | None) else self._add_message(err.code)
        except Exception as err:  # noqa: BLE001 - vLLM's own; the digest tells it
            self._record.add_exception(err, _API_SERVER)
            code = ENGINE_DIED
        if code == USAGE and not is_ready():
            return code
        if not code and not self._has_engine_died:
            if has_api_server or code is None:
                return 0
            self._raise_crash(ENGINE_DIED, None)
        else:
            code = code or ENGINE_DIED
            self._raise_crash(code if is_ready() else START_FAILED, f"vLLM ended with exit code {code} and no message")
        return code

    def _add_message(self, message: str) -> int:
        """What Python does with `sys.exit(message)`."""
        sys.stderr.write(f"{message}\n")
        return ENGINE_DIED

    def _raise_crash(self, exit_code: int, otherwise: str | None) -> None:
        """Does nothing if vLLM was stopped; without a sign of a crash, the cause is the text `otherwise`."""
        from startup.crash.crash_report import build_error, find_crash  # noqa: PLC0415 - only after a failure

        cause = find_crash(self._record, otherwise)
        if cause is not None:
            end_without_finalizing(exit_code)  # libraries would report leaks behind the digest
            raise build_error(cause, self._record, exit_code=exit_code, log_format=self._log_format)
