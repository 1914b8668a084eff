"""`vllm-cli doctor`: whether a start can succeed here, in one report with a verdict in its first line."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    start = parse_start(words, "vllm-cli doctor", is_quiet=True)
    preflight, hooks = _examine(start, has_words=bool(words))
    verdict = _verdict(preflight, hooks)
    click.echo(_to_json(verdict, preflight, hooks) if is_json else "\n\n".join((verdict, *_parts(preflight, hooks))))
    if preflight.has_usage_error:
        return USAGE
    return _FAULTY if preflight.errors or (hooks is not None and not hooks.all_fit) else OK


def _examine(start: StartupConfig | VllmOptions, *, has_words: bool) -> "tuple[PreflightReport, HookReport | None]":
    """The faults of the start, if it has words; the hooks, if its engine is vLLM."""
    nothing = PreflightReport((), 0.0)
    try:
        if isinstance(start, StartupConfig):
            require_embedded_engine()
            return preflight_of(start) if has_words else nothing, None
        from startup.vllm_words.installed import require_vllm

        vllm = require_vllm()
    except StartupError as err:
        return PreflightReport((error("engine", str(err), err.cause),), 0.0), None
    from startup.vllm.launch.hooks import report_hooks

    return preflight_of(start) if has_words else nothing, report_hooks(vllm)


def _verdict(preflight: PreflightReport, hooks: "HookReport | None") -> str:
    unfit = [finding for finding in hooks.findings if finding.state == "does not fit"] if hooks else []
    counts = [describe_count(len(preflight.errors), "error")] if preflight.errors else ["ok"]
    if num_warnings := len(preflight.warnings) + len(unfit):
        counts.append(describe_count(num_warnings, "warning"))
    engine = f"vLLM {hooks.vllm.version}" if hooks else "the embedded engine"
    faults = [finding.message.partition("\n")[0] for finding in preflight.errors]
    return f"{', '.join(counts)}: {faults[0] if faults else f'{engine} can be started here'}"


def _to_json(verdict: str, preflight: PreflightReport, hooks: "HookReport | None") -> str:
    fields = {
        "verdict": verdict,
        "ok": not preflight.errors,
        "findings": [finding.to_fields() for finding in preflight.findings],
        "hooks": hooks and hooks.to_fields(),
        "machine": describe_machine(),
        "kept": kept_fields(),
    }
    return json.dumps(fields, indent=2)


def _parts(preflight: PreflightReport, hooks: "HookReport | None") -> Iterator[str]:
    """What the other commands print."""
    import yaml

    if preflight.findings:
        yield f"# Preflight\n{preflight.to_text()}"
    if hooks is not None:
        yield "\n".join(("# Hooks", *describe_check(hooks)))
    yield f"# Machine\n{yaml.safe_dump(describe_machine(), sort_keys=False, width=1000).rstrip()}"
    yield f"# Kept between starts\n{describe_kept()}"
