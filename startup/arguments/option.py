"""Turns the flags of `serve` into click's options and into help, also for other commands that accept them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from envs.registry import env
from envs.suggestion import did_you_mean, hidden_character
from envs.variable import EnvError
from startup.arguments.errors import InputError
from startup.arguments.param_types import click_type, spell_size
from startup.arguments.supported import GROUPS, SUPPORTED
from startup.arguments.table import FLAGS
from startup.arguments.unsupported import IGNORED, REJECTED
from startup.settings.flag import Flag
from startup.settings.serve_arguments import ParsedOption, help_topic, split

_MODELS: Final = ("--model", "--tokenizer")
_KINDS: Final = {"FILE": "file", "PATH": "file", "FOLDER": "dir"}
"""A flag's metavar -> the kind of files that a shell completes for the flag."""
_SERVE: Final = click.Command("serve")


class FlagOption(click.Option):
    """A flag as click's option."""

    def __init__(self, flag: Flag) -> None:
        name = flag.name.removeprefix("--")
        declaration = f"--{name}/--no-{name}" if flag.nargs == 0 else flag.name
        super().__init__(
            [declaration, flag.parameter],
            type=click_type(flag),
            multiple=flag.nargs == "+",
            default=None,
            help=flag.help,
            metavar=flag.metavar,
        )
        self.flag = flag

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes models, files, folders and choices."""
        if self.flag.name in _MODELS:
            return complete_model(ctx, self, incomplete)
        if kind := _KINDS.get(self.flag.metavar or ""):
            return [CompletionItem(incomplete, type=kind)]
        return super().shell_complete(ctx, incomplete)

    def value_of(self, found: ParsedOption | None) -> Any:
        """The converted value of an option, else of the variable. None for no or an empty value."""
        variable = self.flag.variable
        if found is not None:
            value: Any = found.values if self.multiple else found.is_on if self.flag.nargs == 0 else found.text
        elif variable is not None and self.flag.is_set:
            value = (variable.get(),) if self.multiple else variable.get()
        else:
            return None
        try:
            value = self.type_cast_value(click.get_current_context(silent=True) or click.Context(_SERVE), value)
        except click.BadParameter as err:
            hidden = hidden_character((found and found.text) or "")
            message = f"{err.message.rstrip('.')}{hidden}." if hidden else err.message
            hint = (found and found.where) or None
            raise click.BadParameter(message, err.ctx, err.param, hint) from err
        if self.multiple:
            return tuple(filter(None, value)) or None
        return None if value == "" else value


class ServeFlagsCommand(click.Command):
    """A command that accepts its own options at any position. The others become its parameter `arguments`.

    click's own parser would find the option `-h` among the letters of `-cc.cudagraph_mode=NONE`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments. `--help=WORD` shows the server's flags that contain WORD."""
        if (topic := help_topic(args)) and not ctx.resilient_parsing:
            click.echo(describe_topic(ctx, topic))
            ctx.exit()
        options = {name: option for option in self.params if isinstance(option, click.Option) for name in option.opts}
        num_values = {name: 0 if option.is_flag else 1 for name, option in options.items()} | {"--help": 0, "-h": 0}
        own: list[str] = []
        others: list[str] = []
        for part in split(args, num_values.get):
            if part.typed in num_values:
                _, equals, value = part.arguments[0].partition("=")
                own += [f"{part.typed}{equals}{value}", *part.arguments[1:]]
            else:
                others += part.arguments
        rest = super().parse_args(ctx, own)
        ctx.params["arguments"] = tuple(others)
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes the command's own options and the server's flags."""
        own = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return own
        left_out = {item.value for item in own}
        flags = [flag for flag in SUPPORTED if flag.name.startswith(incomplete) and flag.name not in left_out]
        return [*own, *(CompletionItem(flag.name, help=flag.help) for flag in flags)]


_PREFIX: Final = "models--"


def complete_model(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of models. If no name matches, the shell completes folders."""
    download_dir = ctx.params.get("download_dir")
    names = [name for name in sorted(cached_models(download_dir)) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


def cached_models(download_dir: str | None = None) -> Iterator[str]:
    """Hub ids of downloaded models, from the names of their folders."""
    try:
        folder = Path(download_dir) if download_dir else env.HF_HUB_CACHE.get()
        for entry in folder.iterdir():
            if entry.name.startswith(_PREFIX) and (entry / "snapshots").is_dir():
                yield entry.name.removeprefix(_PREFIX).replace("--", "/")
    except (OSError, EnvError):
        return


def write_groups(formatter: click.HelpFormatter) -> None:
    """Writes the supported flags by group, with their meaning."""
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, flags)
    with formatter.section("Help"):
        rows = [
            ("-h, --help", "Show this help."),
            ("--help=all|WORD", "Show every flag, or those that contain WORD."),
        ]
        formatter.write_dl(rows, col_max=34)


def describe_topic(ctx: click.Context, topic: str) -> str:
    """The flags for `--help=all` or `--help=WORD` (see `help_topic`)."""
    formatter, found = ctx.make_formatter(), find_flags(topic)
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, [flag for flag in flags if flag in found])
    for reason, ignored in IGNORED.items():
        _write_names(formatter, f"Accepted without effect: {reason}", [flag for flag in ignored if flag in found])
    for feature, rejected in REJECTED.items():
        _write_names(formatter, f"Only with --engine vllm: {feature}", [flag for flag in rejected if flag in found])
    return formatter.getvalue().strip("\n")


def _write_supported(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [
        (spell(flag), f"{flag.help} [{default}]" if (default := spell_default(flag)) else flag.help) for flag in flags
    ]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=34)


def _write_names(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [", ".join(flag.names) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write("".join(f"  {row}\n" for row in rows))


def spell(flag: Flag) -> str:
    """The flag with its metavar, as the help shows it."""
    if flag.nargs == 0:
        return f"--[no-]{flag.name.removeprefix('--')}"
    return f"{', '.join(flag.names)} {flag.metavar or _type_name(click_type(flag))}"


def _type_name(type_: click.ParamType | None) -> str:
    if isinstance(type_, click.Choice):
        return "|".join(type_.choices)
    return (type_.name if type_ else "text").upper()


def spell_default(flag: Flag) -> str:
    """The default in the flag's syntax. Empty if the flag has no default or is a switch that is off."""
    default = flag.default
    if default is None or default is False or default in ("", ()):
        return ""
    if flag.nargs == 0:
        return "on"
    if flag.kind == "size":
        return spell_size(default)
    if isinstance(default, tuple):
        return json.dumps(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def find_flags(topic: str) -> tuple[Flag, ...]:
    """The flags whose names contain the topic, or all flags for `all`. Raises InputError if none is found."""
    text = topic.lower().replace("_", "-").strip().lstrip("-")
    if text == "all":
        return FLAGS
    joined = text.replace("-", "")
    found = tuple(flag for flag in FLAGS if any(joined in name.replace("-", "") for name in flag.names))
    if not found:
        guess = did_you_mean(text, [name.lstrip("-") for flag in FLAGS for name in flag.names])
        raise InputError(f"No flag has {topic!r} in its name{guess}. --help=all shows every flag.")
    return found
