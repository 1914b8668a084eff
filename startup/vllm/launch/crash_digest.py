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

    def run(self, run_vllm: Callable[[], int], is_ready: Callable[[], bool]) -> int:
        """Returns vLLM's exit code if it was stopped or its command line is wrong.

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
        if self._has_engine_died:
            code = code or ENGINE_DIED
        if not code or (code == USAGE and not is_ready()):
            return code or 0
        self._raise_crash(code if is_ready() else START_FAILED, code)
        return code

    def _add_message(self, message: str) -> int:
        """What Python does with `sys.exit(message)`."""
        sys.stderr.write(f"{message}\n")
        return ENGINE_DIED

    def _raise_crash(self, exit_code: int, vllm_code: int) -> None:
        """Does nothing if vLLM was stopped."""
        from startup.crash.crash_report import build_error, find_crash  # noqa: PLC0415 - only after a failure

        end_without_finalizing(exit_code)  # libraries would report leaks behind the digest
        cause = find_crash(self._record, f"vLLM ended with exit code {vllm_code} and no message")
        if cause is not None:
            raise build_error(cause, self._record, exit_code=exit_code, log_format=self._log_format)
