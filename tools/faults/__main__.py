"""`python -m tools.faults`: kills a server's engine and times its recovery; `make test-faults` runs it."""

from pathlib import Path

import click

from tools.faults.engine_kills import measure_recoveries
from vllm_cli.commands.bench_options import COMMAND, COUNT, SECONDS, own_command


@click.command("faults", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "command", type=COMMAND, help="Command that starts the server.  [default: vllm-cli serve]")
@click.option("--rounds", "num_rounds", type=COUNT, default=5, help="Number of engines that are killed.")
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(0),
    default=3,
    metavar="SECONDS",
    help="Age of an engine when it is killed: a new engine still packs its weights after it is ready.",
)
@click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON.")
def faults(
    *, command: str | None, num_rounds: int, settle_s: float, ready_timeout_s: float, json_path: Path | None
) -> None:
    """Kill a server's engine repeatedly, and time what clients see.

    The server is started with --engine-restarts, on a free port, and stopped at the end. Reported are the
    times from SIGKILL to the first /health that is not 200, to the next /health that is 200, and to one
    token.

    \b
    Examples:
      python -m tools.faults
      python -m tools.faults --cmd "vllm-cli serve MODEL" --rounds 10 --json faults.json

    Exit codes: 0 done, 1 the server exited, 2 usage, 3 it was not ready in time.
    """
    result = measure_recoveries(
        command or own_command(),
        num_rounds=num_rounds,
        settle_s=settle_s,
        ready_timeout_s=ready_timeout_s,
        report_progress=lambda message: click.echo(message, err=True),
    )
    if json_path is not None:
        json_path.write_text(result.to_json() + "\n", encoding="utf-8")
    click.echo(result.to_text())


if __name__ == "__main__":
    faults(prog_name="python -m tools.faults")
