"""Runs vLLM. If vLLM fails, builds the digest of the crash, which is this program's last output."""

import os
import signal
import sys
from collections.abc import Callable
from traceback import extract_tb
from typing import TYPE_CHECKING, Final, Literal

from base.exit_codes import ENGINE_DIED, START_FAILED, USAGE
from startup.errors import CrashError, StartupError
from startup.logs.options import LogFormat
from startup.processes.quick_end import end_without_finalizing
from startup.reports.crash.output_record import OutputRecord
from startup.reports.crash.phases import phase_of_functions

if TYPE_CHECKING:
    from startup.reports.crash.explanation import Cause

_API_SERVER: Final = "APIServer"
"""vLLM's name for this process."""
_NO_MESSAGE: Final = "the engine died, and left no message"


class CrashDigest:
    """Explains how one start failed. Used on the main thread of the process that becomes the API server."""

    def __init__(
        self,
        record: OutputRecord,
        log_format: LogFormat,
        *,
        is_ready: Callable[[], bool],
        on_failed_start: Callable[["Cause"], None],
    ) -> None:
        """`on_failed_start` is called before a failed start is reported, and may start vLLM again."""
        self._record = record
        self._log_format = log_format
        self._is_ready = is_ready
        self._on_failed_start = on_failed_start
        self._has_engine_died = False
        record.begin_process(_API_SERVER, is_watched=False)

    def note_engine_death(self) -> None:
        """Called when vLLM's engine has died, after which vLLM itself returns exit code 0."""
        self._has_engine_died = True

    def run(self, run_vllm: Callable[[], int], *, has_api_server: bool) -> int:
        """Runs vLLM. Returns vLLM's exit code if vLLM was stopped or its command line is wrong.

        On a node without an API server, `run_vllm` returns only after the engine has ended.

        Raises:
            StartupError: this program has refused the start.
            CrashError: a process has failed. The exit code is 3 before readiness, and vLLM's own afterwards.
        """
        try:
            code = run_vllm()
        except SystemExit as err:
            return self._exit(err.code)
        except StartupError:
            raise
        except Exception as err:
            phase = phase_of_functions(frame.name for frame in extract_tb(err.__traceback__))
            shown = self._record.describe_exception(err, _API_SERVER)
            raise self._build_error(ENGINE_DIED, f"{type(err).__name__}: {err}", phase, shown=shown) from err
        if self._has_engine_died:
            raise self._build_error(code or ENGINE_DIED, _NO_MESSAGE)
        if not has_api_server and self._has_sign_of("crash"):
            raise self._build_error(ENGINE_DIED, _NO_MESSAGE, is_ready=True)  # whether it was ready is not known
        return code

    def _exit(self, given: object) -> int:
        """Handles vLLM's call of `sys.exit`, whose argument `given` is a code or a message."""
        if given is not None and not isinstance(given, int):
            sys.stderr.write(f"{given}\n")
            given = ENGINE_DIED
        code = 0 if given == signal.SIGTERM else given or 0  # ray.init has replaced vLLM's handler of SIGTERM
        if code == 0 or (code == USAGE and not self._is_ready()) or self._has_sign_of("stop"):
            return code
        raise self._build_error(code, f"vLLM ended with exit code {code} and no message")

    def _has_sign_of(self, kind: Literal["stop", "crash"]) -> bool:
        from startup.reports.crash import crash_report  # noqa: PLC0415 - only after a failure

        cause = crash_report.find_crash(self._record)
        return cause is not None and cause.is_stop == (kind == "stop")

    def _build_error(
        self, code: int, message: str, phase: str = "", *, shown: str = "", is_ready: bool = False
    ) -> CrashError:
        """Builds the error with the digest, unless `on_failed_start` starts vLLM again.

        Args:
            code: the exit code for a server that was ready.
            message: this process's own message about the failure.
            phase: the phase in which this process failed.
            shown: text about the failure that this process has not shown yet.
            is_ready: treats vLLM as ready, even if its readiness is not known.
        """
        from startup.reports.crash import crash_report  # noqa: PLC0415 - only after a failure

        cause = None if self._is_ready() else crash_report.find_crash(self._record, shown)
        if cause is not None and not cause.is_stop:
            self._on_failed_start(cause)
        sys.stderr.write(shown)
        exit_code = code if is_ready or self._is_ready() else START_FAILED
        cause = crash_report.describe_crash(self._record, f"{_API_SERVER} pid={os.getpid()}", phase, message)
        end_without_finalizing(exit_code)  # libraries would report leaks after the digest
        return crash_report.build_error(cause, self._record, exit_code=exit_code, log_format=self._log_format)
