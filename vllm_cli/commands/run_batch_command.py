"""The click command `run-batch`: parses its own options; all others are for the server that it starts."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from startup.serve_words import help_topic, split
from vllm_cli.errors import InputError
from vllm_cli.flags.supported import SUPPORTED
from vllm_cli.serve.help import write_topic

SERVE_WORDS: Final = "serve_words"
"""The parameter with the words that are not options of `run-batch`."""

_ADDRESS_FLAGS: Final = ("--host", "--port", "--uds", "--enable-metrics")


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
        ctx.params[SERVE_WORDS] = tuple(words.others)
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


def serve_words_of(params: dict[str, Any]) -> tuple[str, ...]:
    """The words for `serve`."""
    words: tuple[str, ...] = params.pop(SERVE_WORDS)
    return words
