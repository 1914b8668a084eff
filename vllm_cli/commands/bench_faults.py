"""The command `bench faults`: its options; the benchmark itself is imported only when it runs."""

from pathlib import Path

import click

from vllm_cli.commands.bench_options import COMMAND, COUNT, SECONDS, own_command


@click.command("faults", context_settings={"max_content_width": 110, "show_default": True})
@click.option("--cmd", "command", type=COMMAND, help="Command that starts the server.  [default: vllm-cli serve]")
@click.option("--rounds", "num_rounds", type=COUNT, default=5, help="How many engines are killed.")
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(0),
    default=3,
    metavar="SECONDS",
    help="How old an engine is when it is killed: it still arranges its weights when it is ready.",
)
@click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600, metavar="SECONDS")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Result as JSON, too.")
def faults(
    *, command: str | None, num_rounds: int, settle_s: float, ready_timeout_s: float, json_path: Path | None
) -> int:
    """Kill a server's engine again and again, and time what clients see.

    The server is started with --engine-restarts, on a free port, and stopped at the end. Reported are the times from
    SIGKILL to the first /health that is not 200, to the next that is, and to one token.

    \b
    Examples:
      vllm-cli bench faults
      vllm-cli bench faults --cmd "vllm-cli serve MODEL" --rounds 10 --json faults.json

    Exit codes: 0 done, 1 the server ended, 2 usage, 3 it was not ready in time.
    """
    from vllm_cli.bench.faults import run_faults_bench

    def note(message: str) -> None:
        click.echo(message, err=True)

    result = run_faults_bench(
        command or own_command(), num_rounds=num_rounds, settle_s=settle_s, ready_timeout_s=ready_timeout_s, note=note
    )
    if json_path is not None:
        json_path.write_text(result.to_json() + "\n", encoding="utf-8")
    click.echo(result.to_text())
    return 0
