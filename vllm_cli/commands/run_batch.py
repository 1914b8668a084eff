"""`vllm-cli run-batch`: answers a file of requests; imports the work itself only when it runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from startup.serve_words import help_topic, split
from vllm_cli.client.server import Server, choose_key
from vllm_cli.client.server_address import parse_url
from vllm_cli.errors import InputError
from vllm_cli.flags.help import write_topic
from vllm_cli.flags.option import complete_model
from vllm_cli.flags.router_words import ADDRESS
from vllm_cli.flags.supported import SUPPORTED

if TYPE_CHECKING:
    from vllm_cli.batch.run import BatchConfig

_SERVE_WORDS: Final = "serve_words"
"""The parameter with the words that are not options of `run-batch`."""

_ADDRESS_FLAGS: Final = (*ADDRESS, "--enable-metrics")


class RunBatchCommand(click.Command):
    """Takes its own options out of the words, at any position; keeps the order of the rest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--help=WORD` shows flags of the server."""
        if (topic := help_topic(args)) and not ctx.resilient_parsing:
            formatter = ctx.make_formatter()
            write_topic(formatter, topic)
            click.echo(formatter.getvalue().strip("\n"))
            ctx.exit()
        words = self._split(args)
        if not ctx.resilient_parsing:
            _reject_addresses(words.others)
        rest = super().parse_args(ctx, words.own)
        ctx.params[_SERVE_WORDS] = tuple(words.others)
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes its own options and the server's flags."""
        own = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return own
        known = {item.value for item in own}
        hidden = (*known, *_ADDRESS_FLAGS)
        flags = [flag for flag in SUPPORTED if flag.name.startswith(incomplete) and flag.name not in hidden]
        return [*own, *(CompletionItem(flag.name, help=flag.help) for flag in flags)]

    def _split(self, args: Sequence[str]) -> "_Words":
        options = {name: option for option in self.params if isinstance(option, click.Option) for name in option.opts}
        num_values = {name: 0 if option.is_flag else 1 for name, option in options.items()} | {"--help": 0, "-h": 0}
        words = _Words([], [])
        for given in split(args, num_values.get):
            if given.flag in num_values:
                name, equals, value = given.words[0].partition("=")
                words.own.extend([f"{given.flag}{equals}{value}", *given.words[1:]])
            else:
                words.others.extend(given.words)
        return words


class _Words(NamedTuple):
    own: list[str]
    others: list[str]


def _reject_addresses(words: Sequence[str]) -> None:
    for given in split(words):
        if given.flag in _ADDRESS_FLAGS:
            raise InputError(
                f"{given.flag}: the server of run-batch has a private socket; "
                "start `vllm-cli serve` and give its --url."
            )


_FOLDER: Final = click.Path(exists=True, file_okay=False, writable=True, path_type=Path)

_HELP = """Answer the requests of a file in OpenAI's batch format, as `vllm run-batch` does.

Each line of INPUT is `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`; its
answer is a line of OUTPUT with the same custom_id. Without --url, the command starts a server on a private
socket and accepts every flag of `vllm-cli serve` (`--help=all`). With --url, it sends the requests to a running
server, of this program or another one with the OpenAI API.

Each answer is written at once. The same command, run again, continues where the last run ended or was
killed, and repeats no request. At the end the answers are in the order of the requests.

\b
Endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings,
  /score, /rerank, /pooling, /classify, /tokenize

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


@click.command("run-batch", cls=RunBatchCommand, help=_HELP)
@click.option("-i", "--input-file", required=True, metavar="INPUT", help="File or URL of the requests, - for stdin.")
@click.option(
    "-o", "--output-file", required=True, metavar="OUTPUT", help="File for the answers, or URL to PUT them to."
)
@click.option(
    "--output-tmp-dir", type=_FOLDER, metavar="FOLDER", help="Folder for answers until they are uploaded to a URL."
)
@click.option(
    "--model", shell_complete=complete_model, help="Model to serve; with --url, the model of requests without one."
)
@click.option("--url", help="Address of a running server: http(s)://… or unix:/path; one is started if not given.")
@click.option("--api-key", help="With --url: key to send; OPENAI_API_KEY or VLLM_API_KEY if not given.")
@click.option(
    "--max-concurrency", type=click.IntRange(1), help="Most requests at once; 256, with --url 32, if not given."
)
@click.option(
    "--retry-timeout",
    "retry_timeout_s",
    type=click.FloatRange(0),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long a request is repeated after 408, 425, 429, 502, 503, 504 or a lost connection.",
)
@click.option(
    "--fail-on-error", "fails_on_error", is_flag=True, help="Exit with code 5 if OUTPUT lists a failed request."
)
@click.option("--overwrite", "is_overwriting", is_flag=True, help="Start from the beginning and discard OUTPUT.")
@click.option("--quiet", "is_quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "is_json", is_flag=True, help="Print a summary as JSON on standard output.")
def run_batch(*, is_json: bool, **options: Any) -> int:
    """Returns the exit code."""
    config = _build_config(options)

    from vllm_cli.batch.run import run_batch as run

    outcome = run(config)
    if is_json:
        click.echo(json.dumps(outcome.summary))
    return outcome.exit_code


def _build_config(options: dict[str, Any]) -> "BatchConfig":
    from vllm_cli.batch.run import BatchConfig

    words: tuple[str, ...] = options.pop(_SERVE_WORDS)
    url, model, api_key = (options.pop(name) for name in ("url", "model", "api_key"))
    if url is None:
        if api_key is not None:
            raise InputError("--api-key requires --url; the server that run-batch starts needs no key.")
        named = () if model is None else ("--model", model)
        return BatchConfig(serve_words=(*named, *words), **options)
    if words:
        raise InputError(f"{' '.join(words)}: with --url, run-batch starts no server that could use this.")
    return BatchConfig(server=Server(parse_url(url), choose_key(api_key)), model=model, **options)
