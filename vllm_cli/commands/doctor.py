"""`vllm-cli doctor`: whether a start can succeed here, in one report with a verdict in its first line."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from base.exit_codes import OK, USAGE
from startup.embedded.installed import require_embedded_engine
from startup.ground.config import StartupConfig, VllmOptions
from startup.ground.errors import StartupError
from startup.session.preflight.report import PreflightReport, describe_count, error
from startup.words.option import ServeFlagsCommand, complete_model
from startup.words.serve_command import parse_start
from vllm_cli.commands.caches import describe_kept, kept_fields
from vllm_cli.commands.check_hooks import describe_check
from vllm_cli.commands.environment import describe_machine
from vllm_cli.commands.serve import preflight_of

if TYPE_CHECKING:
    from startup.vllm.launch.hooks import HookReport
    from startup.vllm_words.installed import InstalledVllm

_FAULTY = 1

_HELP = """Report whether a server can be started here, with a verdict in the first line.

The report has the faults that `serve --preflight-only` finds for MODEL and the flags of `serve`, the hooks of
`check-hooks` if the engine is vLLM, the machine as `collect-env` describes it, and what `caches` lists. Without MODEL
and flags, nothing is checked that depends on them. Nothing is started.

\b
Examples:
  vllm-cli doctor
  vllm-cli doctor Qwen/Qwen3-0.6B --max-model-len 8k
  vllm-cli doctor --json | jq .verdict

Exit codes: 0 a start can succeed; 1 an error, or a hook that does not fit; 2 usage.
"""


@click.command(
    "doctor",
    cls=ServeFlagsCommand,
    help=_HELP,
    context_settings={"max_content_width": 120},
    options_metavar="[OPTIONS] [SERVE FLAGS]",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL]", shell_complete=complete_model)
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
def doctor(*, words: tuple[str, ...], is_json: bool) -> int:
    """Returns the exit code."""
    report = _examine(words)
    click.echo(json.dumps(report.to_fields(), indent=2) if is_json else "\n\n".join(report.parts()))
    return report.exit_code


class _Report(NamedTuple):
    """All that was found."""

    preflight: PreflightReport
    """Without findings if no words of a start were given."""
    hooks: "HookReport | None" = None
    """None if the engine is not vLLM."""

    @property
    def verdict(self) -> str:
        """One line."""
        errors, warnings = self.preflight.errors, len(self.preflight.warnings) + len(self._unfit)
        counts = [describe_count(len(errors), "error")] if errors else ["ok"]
        counts += [describe_count(warnings, "warning")] if warnings else []
        engine = f"vLLM {self.hooks.vllm.version}" if self.hooks else "the embedded engine"
        text = errors[0].message.partition("\n")[0] if errors else f"{engine} can be started here"
        return f"{', '.join(counts)}: {text}"

    @property
    def exit_code(self) -> int:
        """That of the command."""
        if self.preflight.has_usage_error:
            return USAGE
        return _FAULTY if self.preflight.errors or self._unfit else OK

    def to_fields(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "verdict": self.verdict,
            "ok": not self.preflight.errors,
            "findings": [finding.to_fields() for finding in self.preflight.findings],
            "hooks": self.hooks and self.hooks.to_fields(),
            "machine": describe_machine(),
            "kept": kept_fields(),
        }

    def parts(self) -> Iterator[str]:
        """The report as text: the verdict, then what each of the other commands prints."""
        import yaml

        yield self.verdict
        if self.preflight.findings:
            yield f"# Preflight\n{self.preflight.to_text()}"
        if self.hooks is not None:
            yield "\n".join(("# Hooks", *describe_check(self.hooks)))
        yield f"# Machine\n{yaml.safe_dump(describe_machine(), sort_keys=False, width=1000).rstrip()}"
        yield f"# Kept between starts\n{describe_kept()}"

    @property
    def _unfit(self) -> list[str]:
        findings = self.hooks.findings if self.hooks else ()
        return [finding.hook for finding in findings if finding.state == "does not fit"]


def _examine(words: tuple[str, ...]) -> _Report:
    start = parse_start(words, "vllm-cli doctor", is_quiet=True)
    try:
        vllm = _require_engine(start)
    except StartupError as err:
        return _Report(PreflightReport((error("engine", str(err), err.cause),), 0.0))
    preflight = preflight_of(start) if words else PreflightReport((), 0.0)
    if vllm is None:
        return _Report(preflight)
    from startup.vllm.launch.hooks import report_hooks

    return _Report(preflight, report_hooks(vllm))


def _require_engine(start: StartupConfig | VllmOptions) -> "InstalledVllm | None":
    """The vLLM of this start, None with the embedded engine; raises StartupError if it is not installed."""
    if isinstance(start, StartupConfig):
        require_embedded_engine()
        return None
    from startup.vllm_words.installed import require_vllm

    return require_vllm()
