"""`vllm-cli wait`: waits for the readiness of a server, for scripts and entrypoints."""

import json
from contextlib import closing
from typing import Any, Final

import click

from startup.arguments.errors import InputError
from vllm_cli.client.server_address import ServerAddress, address_options, take_address
from vllm_cli.client.waiting import INCOMPLETE, Ending, Readiness, WaitOptions, WaitResult, wait_for_server
from vllm_cli.terminal import SECONDS, Reporter

EXIT_CODES: Final[dict[Ending, int]] = {"ready": 0, "failed": 1, "timed out": 4}

_HEARTBEAT_S: Final = 10.0


@click.command("wait", context_settings={"max_content_width": 110, "show_default": True})
@click.argument("url", required=False)
@address_options
@click.option("--path", default="/health", help="Path to poll. 200 means ready.")
@click.option("--timeout", "timeout_s", type=SECONDS, default=600, help="Longest wait.")
@click.option("--interval", "interval_s", type=SECONDS, default=0.2, help="Pause between two polls.")
@click.option("--pid", type=click.IntRange(1), help="The server's process id. The wait ends when this process ends.")
@click.option("--graphs", "with_graphs", is_flag=True, help="Also wait until vLLM has captured its CUDA graphs.")
@click.option("--json", "is_json", is_flag=True, help="Print the outcome as JSON.")
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print nothing.")
def wait(*, is_json: bool, is_quiet: bool, **options: Any) -> int:
    """Wait until the server at URL is ready to answer requests, and show its phase meanwhile.

    URL is http://host:port, https://… or unix:/path. The address flags of `serve` work as well.
    The server does not need to listen yet.

    \b
    Examples:
      vllm-cli wait
      vllm-cli wait http://10.0.0.7:8000 --timeout 120
      vllm-cli serve --port 8001 & vllm-cli wait --port 8001 --pid $!

    Exit codes: 0 ready; 1 the server failed, exited, does not report readiness, or with --graphs has given up
    graphs; 2 usage; 4 timed out.
    """
    if not options["path"].startswith("/"):
        raise InputError(f"--path must begin with /, got {options['path']!r}.")
    settings = WaitOptions(address=take_address(options), **options)
    with closing(Reporter(is_quiet=is_quiet, interval_s=_HEARTBEAT_S)) as reporter:
        result = wait_for_server(
            settings,
            lambda polled, waited_s: reporter.update(_describe(polled, waited_s, settings.address), _state(polled)),
        )
    if is_json:
        click.echo(json.dumps({"url": str(settings.address), **result.to_dict()}))
    if not is_quiet:
        click.echo(_describe_end(settings, result), err=True)
    return EXIT_CODES[result.ending]


def _describe(polled: Readiness, waited_s: float, address: ServerAddress) -> str:
    return f"{address}: {_state(polled)}{polled.describe_rest()}, waiting for {waited_s:.1f} s"


def _state(polled: Readiness) -> str:
    return polled.phase.replace("_", " ") if polled.phase else polled.reason


def _describe_end(options: WaitOptions, result: WaitResult) -> str:
    address, last = options.address, result.last
    if result.ending == "ready":
        return f"{address} is ready after {result.waited_s:.1f} s"
    if last.status == INCOMPLETE:
        return f"Error: {address} is ready, but not with all CUDA graphs: {last.reason}"
    if result.ending == "failed":
        return f"Error: {address} will not become ready: {last.reason}"
    state = f"its phase is {last.phase}" if last.phase else last.reason
    return f"Error: {address} was not ready after {options.timeout_s:g} s: {state}"
