"""`vllm-cli serve`: checks the settings and starts the engine."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from base.exit_codes import OK, START_FAILED, USAGE
from envs.registry import env
from startup import start_origin
from startup.arguments.screening import show_notices
from startup.arguments.serve_command import PARAMETERS, READ, ServeCommand
from startup.embedded.installed import require_embedded_engine
from startup.errors import StartupError
from startup.settings.config import StartupConfig
from startup.settings.serve_arguments import ParsedOption
from startup.vllm_arguments.options import VllmOptions
from vllm_cli.commands.of_vllm import vllms_own

if TYPE_CHECKING:
    from startup.session.preflight.report import PreflightReport

_HELP = """Serve MODEL with the OpenAI API of `vllm serve`.

MODEL is a name on the Hugging Face hub or a folder. Without MODEL, SmolLM2-135M-Instruct is served; with several, or
with --models FILE, all of them behind one port, each from its first request. Every flag of `vllm serve` is accepted:
`--help=all` also shows those without effect and those that need `--engine vllm`. `_` and `-` are the same in a flag's
name.

\b
Examples:
  vllm-cli serve
  vllm-cli serve Qwen/Qwen3-0.6B --port 8001 --max-model-len 8k
  vllm-cli serve Qwen/Qwen3-0.6B --api-key-file keys.txt --served-model-name qwen
  vllm-cli serve --models models.yaml --idle-stop 10m
  vllm-cli serve Qwen/Qwen3-0.6B --restart on-failure
  vllm-cli serve --override-generation-config.temperature 0.5

Exit codes: 0 stopped by a signal; 1 the engine died (with --restart, N times in a row); 2 usage; 3 the start failed;
130 and 143 Ctrl-C and SIGTERM during the start.
"""

_EPILOG = f"{vllms_own('serve')} `--engine vllm` starts it faster, and unchanged with {env.VCLI_PLAIN_VLLM.name}=1."


@click.command(cls=ServeCommand, name="serve", params=list(PARAMETERS), help=_HELP, epilog=_EPILOG)
@click.pass_context
def serve(ctx: click.Context, /, **_: object) -> int:
    """Runs the server and returns its exit code. Imports nothing heavy before all settings are checked."""
    read, start = ctx.meta[READ]
    if start is None:
        return _serve_several(read.of_router)
    if isinstance(start, StartupConfig):
        require_embedded_engine()
    if start.is_behind_router and not start.is_preflight_only:
        from router.arguments.single_model import router_of_one

        options = router_of_one(read, start)
        from router.router import run_router  # after usage errors, because it imports aiohttp

        return run_router(options)
    if start.standby == "require" and start_origin.warm is None and not read.wants_cold_start:
        message = f"--standby require: {start_origin.cold_reason or 'this process was not forked'}"
        raise StartupError(message, cause="standby-unusable")
    if start.is_preflight_only:
        return _print(preflight_of(start), as_json=start.is_json)
    if isinstance(start, StartupConfig):
        from startup.embedded.start import start_embedded

        return start_embedded(start)
    from startup.vllm_arguments.installed import require_vllm

    vllm = require_vllm()
    from startup.vllm.launch.start import start_vllm

    return start_vllm(vllm, start)


def _serve_several(parts: Sequence[ParsedOption]) -> int:
    """Runs the router for several models."""
    from router.arguments.router_arguments import read_several

    several = read_several(parts)
    show_notices(several.notices, several.config.log_format)
    from router.arguments.router_options import ModelsReader  # a usage error imports no aiohttp

    begin = time.perf_counter()
    reader = ModelsReader(several)
    checked = reader.read()
    if several.config.is_preflight_only:
        report = checked.report(time.perf_counter() - begin)
        return _print(report, as_json=several.config.is_json)
    show_notices(map(str, checked.notices), several.config.log_format)
    options = reader.router_options(checked)
    from router.router import run_router

    return run_router(options)


def preflight_of(start: StartupConfig | VllmOptions) -> "PreflightReport":
    """Checks a start. Raises StartupError if the start needs vLLM and vLLM is not installed."""
    from startup.session.preflight import all_checks

    options = all_checks.PreflightOptions(asks_hub=True)
    if isinstance(start, StartupConfig):
        return all_checks.run_preflight(start, options=options)
    from startup.vllm.launch.first_record import line_for_check
    from startup.vllm_arguments.installed import require_vllm
    from startup.vllm_arguments.preflight.all_checks import run_preflight

    vllm = require_vllm()
    line, problem = line_for_check(vllm, start.line, partial(click.echo, err=True))
    return run_preflight(vllm, line, replace(options, flags_problem=problem))


def _print(report: "PreflightReport", *, as_json: bool) -> int:
    """Prints the findings. Returns the exit code of a start with these findings."""
    click.echo(report.to_json() if as_json else report.to_text())
    if report.has_usage_error:
        return USAGE
    return START_FAILED if report.errors else OK
