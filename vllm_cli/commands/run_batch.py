"""`vllm-cli run-batch`: answers a file of requests. Imports heavy modules only when it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from startup.ground.config import flags_with_role
from startup.ground.serve_words import split
from startup.words.errors import InputError
from startup.words.option import ServeFlagsCommand, complete_model
from vllm_cli.client.server import Server, choose_key
from vllm_cli.client.server_address import parse_url
from vllm_cli.commands.of_vllm import vllms_own

if TYPE_CHECKING:
    from vllm_cli.batch.run_batch import BatchConfig

_ADDRESS_FLAGS: Final = (*flags_with_role("address"), "--enable-metrics")
_FOLDER: Final = click.Path(exists=True, file_okay=False, writable=True, path_type=Path)

_HELP = """Answer the requests of a file in OpenAI's batch format, as `vllm run-batch` does.

Each line of INPUT is `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`. Its
answer is a line of OUTPUT with the same custom_id. Without --url, the command starts a server on a private
socket and accepts every flag of `vllm-cli serve` (`--help=all`). With --url, it sends the requests to a running
server, of this program or another one with the OpenAI API.

Each answer is written at once. The same command, run again, continues where the last run ended or was
killed, and repeats no request. At the end the answers are in the order of the requests.

\b
Endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings,
  /score, /rerank, /pooling, /classify, /tokenize, /detokenize

\b
Examples:
  vllm-cli run-batch -i requests.jsonl -o answers.jsonl
  vllm-cli run-batch -i requests.jsonl -o answers.jsonl --model Qwen/Qwen3-0.6B --max-model-len 4k
  vllm-cli run-batch -i requests.jsonl -o answers.jsonl --url https://llm.example.org/v1 --max-concurrency 8
  vllm-cli run-batch -i requests.jsonl -o answers.jsonl --fail-on-error --json > summary.json

Exit codes: 0 every request is done, and OUTPUT lists the failed ones, if any; 1 the server was lost or the disk is
full, run it again to continue; 2 usage, or a file that is not a batch; 3 the server did not start; 5 with
--fail-on-error: some requests failed; 130 Ctrl-C.
"""


@click.command("run-batch", cls=ServeFlagsCommand, hidden=_ADDRESS_FLAGS, help=_HELP, epilog=vllms_own("run-batch"))
@click.option("-i", "--input-file", required=True, metavar="INPUT", help="File or URL of the requests, - for stdin.")
@click.option(
    "-o", "--output-file", required=True, metavar="OUTPUT", help="File for the answers, or URL to PUT them to."
)
@click.option(
    "--output-tmp-dir", type=_FOLDER, metavar="FOLDER", help="Folder for answers until they are uploaded to a URL."
)
@click.option(
    "--model", shell_complete=complete_model, help="Model to serve. With --url, the model of requests that name none."
)
@click.option("--url", help="Address of a running server: http(s)://… or unix:/path. By default, a server is started.")
@click.option("--api-key", help="With --url: the key to send, by default OPENAI_API_KEY or VLLM_API_KEY.")
@click.option(
    "--max-concurrency", type=click.IntRange(1), help="Most requests at once, by default 256, or 32 with --url."
)
@click.option(
    "--retry-timeout",
    "retry_timeout_s",
    type=click.FloatRange(0),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long to repeat requests after 408, 425, 429, 502, 503, 504 or a lost connection.",
)
@click.option(
    "--fail-on-error", "fails_on_error", is_flag=True, help="Exit with code 5 if OUTPUT lists a failed request."
)
@click.option("--overwrite", "is_overwriting", is_flag=True, help="Discard OUTPUT and start anew.")
@click.option("--quiet", "is_quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "is_json", is_flag=True, help="Print a summary as JSON on standard output.")
def run_batch(*, is_json: bool, **options: Any) -> int:
    """Runs the command. Returns the exit code."""
    config = _build_config(options)

    from vllm_cli.batch.run_batch import run_batch as run

    outcome = run(config)
    if is_json:
        click.echo(json.dumps(outcome.summary))
    return outcome.exit_code


def _build_config(options: dict[str, Any]) -> "BatchConfig":
    from vllm_cli.batch.run_batch import BatchConfig

    words: tuple[str, ...] = options.pop("words")
    for given in split(words):
        if given.flag in _ADDRESS_FLAGS:
            message = "the server of run-batch has a private socket. Start `vllm-cli serve` and give its --url."
            raise InputError(f"{given.flag}: {message}")
    url, model, api_key = (options.pop(name) for name in ("url", "model", "api_key"))
    if url is None:
        if api_key is not None:
            raise InputError("--api-key requires --url. The server that run-batch starts needs no key.")
        named = () if model is None else ("--model", model)
        return BatchConfig(serve_words=(*named, *words), **options)
    if words:
        raise InputError(f"{' '.join(words)}: with --url, run-batch starts no server that could use this.")
    return BatchConfig(server=Server(parse_url(url), choose_key(api_key)), model=model, **options)
