"""`vllm-cli explain`: finds the first failure in the log of a failed vLLM, or explains a code."""

import json
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from envs.suggestion import did_you_mean
from startup.errors import CODE_LINE

if TYPE_CHECKING:
    from vllm_cli.explain.cause import KnownCause
    from vllm_cli.explain.log_line import LogForm

_NO_FAILURE: Final = 1
"""The exit code if no failure was found."""
_SERVED: Final = "Nothing in this log failed, and vLLM served."
_STARTED: Final = "Nothing in this log failed, and vLLM's engine started."
_FOREIGN: Final = "Nothing in this log failed, but no line of it is of a vLLM server."
_NO_START: Final = (
    "This log shows neither an error nor a start of vLLM. Is it the complete output, with standard error?"
)
_CODE: Final = "VC-"
"""The prefix of each code."""
FORMER: Final = {
    "VC-MODEL-NOT-ON-DISK": "VC-MODEL-NOT-FOUND",
    "VC-NO-PYTHON-HEADERS": "VC-PYTHON-HEADERS-MISSING",
    "VC-RAY-NOT-RUNNING": "VC-RAY-NOT-STARTING",
}
"""Code of an earlier release -> the code that has replaced it."""
DIVIDED: Final = tuple(
    f"{_CODE}{name}"
    for name in (
        *("ATTENTION-SINKS-UNSUPPORTED", "CACHE-MISSING", "CPU-MEMORY-TOO-SMALL", "GPU-TOO-OLD", "JOB-CANCELLED"),
        *("PROCESSOR-CACHE-TOO-SMALL", "RAY-VERSIONS-DIFFER", "REVISION-NOT-FOUND", "TOKEN-REFUSED", "XPU-DEVICE-LOST"),
    )
)
"""Codes of earlier releases that several codes have replaced."""


class _LogOrCode(click.File):
    """A parameter that is the file of a log, or a code such as VC-PORT-IN-USE."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The open file, or the code in capitals. A name that begins like a code is always read as a code."""
        code = value.upper() if isinstance(value, str) else ""
        if not code.startswith(_CODE):
            return super().convert(value, param, ctx)
        from vllm_cli.explain.table import BY_CODE  # noqa: PLC0415 - reads a table, which --help does not need

        code = FORMER.get(code, code)
        if code in DIVIDED:
            self.fail(f"{code} is of an earlier release, and several codes have replaced it: give the log.", param, ctx)
        if code not in BY_CODE:
            self.fail(f"there is no code {code}{did_you_mean(code, BY_CODE)}.", param, ctx)
        return code


@click.command("explain")
@click.argument("log", metavar="[FILE|CODE]", type=_LogOrCode("rb"), default="-")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--list", "lists_causes", is_flag=True, help="Print all known causes, and what to do.")
def explain(log: BinaryIO | str, is_json: bool, lists_causes: bool) -> int:
    """Find the first failure in the log of a failed vLLM, and show what to do.

    FILE is the log of `vllm serve` or `vllm-cli serve`, of any size. Without FILE, standard input is read.
    Lines may have prefixes of Docker, Kubernetes, journald, Ray and others. If the log has several runs, the
    last run is explained. CODE is the code in the last lines of a failed start. With CODE, the cause with
    this code is shown.

    \b
    Examples:
      kubectl logs --previous POD | vllm-cli explain
      docker logs vllm 2>&1 | vllm-cli explain
      vllm-cli explain vllm.log --json
      vllm-cli explain VC-PORT-IN-USE

    Exit codes: 0 a failure, or an unfinished start; 1 nothing failed, or a signal stopped vLLM; 2 usage, or
    a log whose lines are joined or in the wrong order.
    """
    from vllm_cli.explain.digest import digest_to_dict, write_digest  # noqa: PLC0415 - not for --help
    from vllm_cli.explain.first_cause import CauseFinder  # noqa: PLC0415 - not for --help
    from vllm_cli.explain.log_line import LogForm, read_lines  # noqa: PLC0415 - not for --help
    from vllm_cli.explain.table import BY_CODE  # noqa: PLC0415 - not for --help

    if lists_causes:
        click.echo("\n\n".join(f"{known.name}: {_describe(known)}" for known in BY_CODE.values()))
        return 0
    if isinstance(log, str):
        known = BY_CODE[log]
        fields = {"code": log, "cause": known.name, "title": known.title, "advice": known.advice}
        click.echo(json.dumps(fields) if is_json else f"Cause: {_describe(known)}")
        return 0
    if log.isatty():
        click.echo("Reading a log from the terminal. Paste it, then press Ctrl-D twice.", err=True)
    finder, form = CauseFinder(), LogForm()
    for line in read_lines(log):
        form.read(line)
        finder.read(line)
    cause = finder.cause()
    _check_form(form, is_clear=cause is not None and not cause.is_weak)
    cause = cause and cause._replace(is_foreign=finder.is_foreign)
    has_failed = cause is not None and not cause.is_stop
    if is_json:
        digest = digest_to_dict(cause) if cause else {}
        click.echo(json.dumps({"failed": has_failed, **digest}))
    elif cause:
        click.echo("\n".join(write_digest(cause)))
    else:
        started = _SERVED if finder.has_served else _STARTED if finder.has_started else _NO_START
        click.echo(_FOREIGN if finder.is_foreign else started, err=True)
    return 0 if has_failed else _NO_FAILURE


def _check_form(form: "LogForm", *, is_clear: bool) -> None:
    """Refuses a log whose form hides the cause. `is_clear`: whether the cause was found nevertheless."""
    if form.is_array:
        raise click.UsageError("The log is a JSON array. Write each record on a line (`jq -c '.[]'`).")
    if form.is_newest_first:
        raise click.UsageError("The log begins with its newest line. Give its oldest line first (`tac`).")
    if form.is_joined and not is_clear:
        raise click.UsageError("The log has lost its line breaks. Give it as the program wrote it.")


def _describe(known: "KnownCause") -> str:
    return f"{known.title}\nDo: {known.advice}\n{CODE_LINE}{known.code}"
