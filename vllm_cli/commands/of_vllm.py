"""The commands that only the installed vLLM has. They run in this process, as `vllm` would run them."""

from collections.abc import Iterator
from typing import Final

import click

from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.ground.serve_words import split
from startup.words.errors import InputError


class VllmCommand(click.Command):
    """Passes all words that follow, even `--help`, to the installed vLLM's command of the same name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps all words for `invoke`. Fails with a suggestion for former words of this program."""
        for former in filter(REPLACEMENTS.get, self._names(ctx, args)):
            if not ctx.resilient_parsing:
                word = former.partition(" ")[2]
                ctx.fail(f"No such {'option' if word[:1] == '-' else 'command'} {word!r}{did_you_mean(former, ())}.")
        ctx.args = args
        return []

    @staticmethod
    def _names(ctx: click.Context, args: list[str]) -> Iterator[str]:
        """Yields the names that a word, a flag or a flag's value may have in the table of replacements."""
        yield " ".join((ctx.info_name or "", *args[:1]))
        for given in split(args, lambda _: "?"):
            yield f"{ctx.info_name} {given.flag}"
            yield from (f"{ctx.info_name} {given.flag} {value.partition(':')[0]}" for value in given.values)

    def invoke(self, ctx: click.Context) -> int:
        """Runs vLLM's command. Returns the exit code, unless vLLM ends the process itself."""
        from startup.vllm.vllm_main import run_plain
        from startup.vllm_words.installed import find_vllm

        _, command, *words = ctx.command_path.split()
        if find_vllm() is None:
            path = " ".join((command, *words))
            raise InputError(f"`{path}` is a command of vLLM, which is not installed here (pip install vllm).")
        return run_plain(command, [*words, *ctx.args])


run_batch: Final = VllmCommand("run-batch", help="vLLM's command: answer the requests of a file.")
launch: Final = VllmCommand("launch", help="vLLM's command: start one component alone, such as its renderer.")
snapshot: Final = VllmCommand("snapshot", help="vLLM's command: keep an initialized engine, and restore it.")
download_kernels: Final = VllmCommand("download-kernels", help="vLLM's command: install precompiled kernels.")
preload: Final = VllmCommand("preload", help="vLLM's command: hold weights in GPU memory while engines restart.")
BENCHMARKS: Final = (
    VllmCommand("latency", help="vLLM's command: the latency of one batch."),
    VllmCommand("throughput", help="vLLM's command: the throughput of an engine without a server."),
    VllmCommand("forward", help="vLLM's command: the forward pass of exact batches."),
    VllmCommand("mm-processor", help="vLLM's command: the preprocessing of images and other media."),
    VllmCommand("sweep", help="vLLM's command: benchmarks with many combinations of settings."),
)


def vllms_own(path: str) -> str:
    """The last paragraph of the help, for a command that vLLM has, too."""
    return f"This is vllm-cli's own command. `vllm {path}` is the installed vLLM's."
