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
from startup.embedded.installed import require_embedded_engine
from startup.errors import StartupError
from startup.settings.config import StandbyMode, StartupConfig, VllmOptions
from startup.words.screening import show_notices
from startup.words.serve_command import PARAMETERS, READ, ServeCommand
from vllm_cli.commands.of_vllm import vllms_own

if TYPE_CHECKING:
    from router.router import RouterOptions
    from startup.session.preflight.report import PreflightReport

_HELP = """Serve MODEL with the OpenAI API of `vllm serve`.

MODEL is a name on the Hugging Face hub or a folder. With `llama-server` on PATH and no `--engine vllm`, it may also
be a .gguf file, a folder of them, or a name with its quantization, such as `team/Model-GGUF:Q4_K_M`.

Without MODEL, SmolLM2-135M-Instruct is served; with several, or with --models FILE, all of them behind one port,
each from its first request. Every flag of `vllm serve` is accepted: `--help=all` also shows
those without effect and those that need `--engine vllm`. `_` and `-` are the same in a flag's name.

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
    words, start, _ = ctx.meta[READ]
    if start is None:
        return _serve_several(words)
    if isinstance(start, StartupConfig):
        require_embedded_engine()
    if start.is_behind_router and not start.is_preflight_only:
        return _serve_behind_router(start, words)
    has_own_code = isinstance(start, StartupConfig) and start.engine.trust_remote_code
    _apply_standby_mode("off" if has_own_code else start.standby)
    if start.is_preflight_only:
        return _print(preflight_of(start), as_json=start.is_json)
    if isinstance(start, StartupConfig):
        from startup.embedded.start import start_embedded

        return start_embedded(start)
    from startup.vllm_words.installed import require_vllm

    vllm = require_vllm()
    from startup.vllm.launch.start import start_vllm

    return start_vllm(vllm, start)


def _serve_behind_router(start: StartupConfig | VllmOptions, words: Sequence[str]) -> int:
    if start_origin.start_again is not None:  # a `--config` file, read after a standby has forked this process
        for variable, seconds in ((env.VCLI_IDLE_STOP, start.idle_stop_s), (env.VCLI_IDLE_SLEEP, start.idle_sleep_s)):
            if seconds is not None:
                start_origin.start_again(variable.name, f"{seconds:g}")
        start_origin.start_again(env.VCLI_RESTART.name, f"on-failure:{start.restart_limit}")
    from router.words.single_model import embedded_router, vllm_router

    options = vllm_router(start, words) if isinstance(start, VllmOptions) else embedded_router(start, words)
    return _route(options)


def _serve_several(words: Sequence[str]) -> int:
    """Runs the router, for several models or for one model that llama-server serves."""
    if start_origin.start_again is not None:  # a standby has forked this process: it did not know the GGUF model
        start_origin.start_again(env.VCLI_STANDBY.name, "off")
    from router.words.router_words import read_several

    several = read_several(words)
    from router.words.router_options import ModelsReader, router_options  # a usage error imports no aiohttp

    begin = time.perf_counter()
    reader = ModelsReader(several)
    checked = reader.read()
    if several.config.is_preflight_only:
        report = checked.report(time.perf_counter() - begin)
        return _print(report, as_json=several.config.is_json)
    show_notices(map(str, checked.notices), several.config.log_format)
    return _route(router_options(several, reader, checked))


def _route(options: "RouterOptions") -> int:
    from router.router import run_router

    return run_router(options)


def _apply_standby_mode(mode: StandbyMode) -> None:
    """Applies `standby:` of the `--config` file. A standby may have forked this process before that.

    The mode is also `off` for a model with code of its own. Such code may use any module, but lean imports
    (`startup.imports.lean`) leave modules out.
    """
    if mode == "off" and start_origin.start_again is not None:
        start_origin.start_again(env.VCLI_STANDBY.name, mode)
    if mode == "require" and start_origin.warm is None:
        message = f"--standby require: {start_origin.cold_reason or 'this process was not forked'}"
        raise StartupError(message, cause="standby-unusable")


def preflight_of(start: StartupConfig | VllmOptions) -> "PreflightReport":
    """Checks a start. Raises StartupError if the start needs vLLM and vLLM is not installed."""
    from startup.session.preflight import all_checks

    options = all_checks.PreflightOptions(asks_hub=True)
    if isinstance(start, StartupConfig):
        return all_checks.run_preflight(start, options=options)
    from startup.vllm.launch.first_record import line_for_check
    from startup.vllm_words.installed import require_vllm
    from startup.vllm_words.preflight.all_checks import run_preflight

    vllm = require_vllm()
    line, problem = line_for_check(vllm, start.words, partial(click.echo, err=True))
    return run_preflight(vllm, line, replace(options, flags_problem=problem))


def _print(report: "PreflightReport", *, as_json: bool) -> int:
    """Prints the findings. Returns the exit code of a start with these findings."""
    click.echo(report.to_json() if as_json else report.to_text())
    if report.has_usage_error:
        return USAGE
    return START_FAILED if report.errors else OK
