"""The flags of the installed vLLM, from the record of an earlier start or, without a record, from a table.

The table has only flags that the launcher reads, each with the decisions of the launcher that it changes.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Literal

from base.wording import list_some
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.settings.flag import Flag, ValueKind
from startup.settings.serve_arguments import ParsedOption, is_flag_like

Change = Literal["modules", "API servers", "no port", "elsewhere", "address"]
"""What a flag changes. `modules`: which modules are imported. `API servers`: whether these are separate
processes. `no port`: this process listens on no port, or with another protocol than HTTP. `elsewhere`: the
server also runs on other machines or behind other sockets. `address`: where the server listens."""


ALIASES: Final = {
    "--compilation-config": ("-cc",),
    "--attention-config": ("-ac",),
    "--api-server-count": ("-asc",),
    "--enable-expert-parallel": ("-ep",),
    "--tensor-parallel-size": ("-tp",),
    "--pipeline-parallel-size": ("-pp",),
    "--nnodes": ("-n",),
    "--node-rank": ("-r",),
    "--decode-context-parallel-size": ("-dcp",),
    "--prefill-context-parallel-size": ("-pcp",),
    "--data-parallel-size": ("-dp",),
    "--data-parallel-rank": ("-dpn",),
    "--data-parallel-start-rank": ("-dpr",),
    "--data-parallel-size-local": ("-dpl",),
    "--data-parallel-address": ("-dpa",),
    "--data-parallel-rpc-port": ("-dpp",),
    "--data-parallel-backend": ("-dpb",),
    "--data-parallel-hybrid-lb": ("-dph",),
    "--data-parallel-external-lb": ("-dpe",),
    "--data-parallel-multi-port-external-lb": ("-dpm",),
    "--speculative-config": ("-sc",),
    "--diffusion-config": ("-dc",),
    "--quantization": ("-q",),
    "--gpu-memory-utilization": ("--device-memory-utilization",),
}
"""The further names of a flag in tested releases."""


def _flags(
    abbreviations: dict[str, str], *changes: Change, nargs: int | str = 1, kind: ValueKind = "text"
) -> Iterator[Flag]:
    """The flags of these names, each with its shortest abbreviation, which is its name if there is none."""
    for name, shortest in abbreviations.items():
        opposites = () if nargs else (f"--no-{name.removeprefix('--')}",)
        names = (name, *ALIASES.get(name, ()))
        yield Flag(names, kind, nargs, opposites, is_optional=True, changes=changes, shortest=shortest)


USUAL: Final = (
    *_flags(
        {
            "--enforce-eager": "--enf",
            "--enable-lora": "--enable-lor",
            "--enable-expert-parallel": "--enable-expert-parallel",
            "--trust-remote-code": "--trust-remote",
        },
        "modules",
        nargs=0,
    ),
    *_flags(
        {
            "--quantization": "--quantization",
            "--runner": "--runn",
            "--convert": "--conv",
            "--task": "--task",
            "--dtype": "--dt",
            "--load-format": "--load-",
            "--model-impl": "--model-i",
        },
        "modules",
    ),
    *_flags(
        {
            "--distributed-executor-backend": "--distributed-e",
            "--speculative-config": "--specu",
            "--kv-transfer-config": "--kv-t",
        },
        "modules",
    ),
    *_flags(
        {"--attention-backend": "--attention-b", "--optimization-level": "--op", "--compilation-config": "--compi"},
        "modules",
    ),
    *_flags({"--tensor-parallel-size": "--te", "--pipeline-parallel-size": "--pi"}, "modules", kind="int"),
    *_flags(
        {"--data-parallel-size": "--data-parallel-size", "--api-server-count": "--api-s"},
        "modules",
        "API servers",
        kind="int",
    ),
    *_flags({"--headless": "--hea"}, "modules", "no port", "elsewhere", nargs=0),
    *_flags(
        {"--grpc": "--grpc", "--data-parallel-multi-port-external-lb": "--data-parallel-m"},
        "no port",
        "elsewhere",
        nargs=0,
    ),
    *_flags({"--ssl-keyfile": "--ssl-k", "--ssl-certfile": "--ssl-certf"}, "no port"),
    *_flags(
        {"--data-parallel-external-lb": "--data-parallel-e", "--data-parallel-hybrid-lb": "--data-parallel-h"},
        "elsewhere",
        nargs=0,
    ),
    *_flags({"--nnodes": "--nn", "--node-rank": "--nod", "--data-parallel-rank": "--data-parallel-ran"}, "elsewhere"),
    *_flags({"--host": "--ho", "--port": "--por", "--uds": "--ud"}, "address"),
    *_flags({"--async-scheduling": "--async-scheduling", "--language-model-only": "--language-model-only"}, nargs=0),
    *_flags(
        {
            "--disable-access-log-for-endpoints": "--disable-access-log-for-endpoints",
            "--data-parallel-backend": "--data-parallel-b",
            "--tokenizer-revision": "--tokenizer-r",
            "--revision": "--rev",
        }
    ),
    *_flags(
        {
            "--model": "--model",
            "--tokenizer": "--tokenizer",
            "--hf-config-path": "--hf-c",
            "--download-dir": "--download",
            "--generation-config": "--gen",
            "--shutdown-timeout": "--shu",
        }
    ),
    *_flags({"--hf-token": "--hf-t"}, nargs="?"),
    *_flags(
        {
            "--api-key": "--api-k",
            "--served-model-name": "--served",
            "--lora-modules": "--lora-m",
            "--ignore-patterns": "--ign",
            "--allowed-media-domains": "--allowed-media-domains",
        },
        nargs="+",
    ),
    *_flags(
        {
            "--collect-detailed-traces": "--collect-detailed-traces",
            "--cpu-offload-params": "--cpu-offload-params",
            "--cudagraph-capture-sizes": "--cudagraph-capture-sizes",
            "--logits-processors": "--logits-processors",
        },
        nargs="+",
    ),
    *_flags(
        {
            "--kv-cache-dtype-skip-layers": "--kv-cache-dtype-skip-layers",
            "--lora-target-modules": "--lora-target-modules",
            "--numa-bind-cpus": "--numa-bind-cpus",
            "--numa-bind-nodes": "--numa-bind-nodes",
        },
        nargs="+",
    ),
    *_flags(
        {
            "--offload-params": "--offload-params",
            "--sleep-preserve-parameter-names": "--sleep-preserve-parameter-names",
        },
        nargs="+",
    ),
    *_flags(
        {
            "--max-lora-rank": "--max-lora-rank",
            "--prefill-context-parallel-size": "--prefill-context-parallel-size",
            "--data-parallel-size-local": "--data-parallel-size-",
        },
        kind="int",
    ),
    *_flags({"--gpu-memory-utilization": "--gpu-memory-utilization"}, kind="float"),
    *_flags({"--kv-cache-memory-bytes": "--kv-cache-memory-bytes"}, kind="count"),
    *_flags({"--max-model-len": "--max-model-len"}, kind="token limit"),
    *_flags({"--hf-overrides": "--hf-overrides"}, kind="json or text"),
)
_SWITCHES: Final = ("--no-", "--enable-", "--disable-", "--skip-", "--trust-", "--use-")
"""Prefixes of the switches in tested releases that are not in the table."""
_MAX_MATCHES: Final = 5


class Flags:
    """The flags of one vLLM. Finds the flag that a name, possibly abbreviated, stands for."""

    def __init__(self, recorded: Sequence[Flag] = ()) -> None:
        self.is_recorded = bool(recorded)
        """Whether the flags are recorded, and therefore complete."""
        known = (*recorded, Flag(("--help", "-h"), nargs=0)) if recorded else USUAL
        self._by_option = {option: flag for flag in known for option in flag.options}

    def __contains__(self, option: str) -> bool:
        """Whether a flag has exactly this name."""
        return option in self._by_option

    def option_of(self, part: ParsedOption) -> ParsedOption:
        """The option that an argument stands for, with the fault that argparse would report.

        Until the flags are recorded, an unknown name may be that of a flag with an optional value.
        """
        name, values = part.typed, tuple(part.values)
        options = self.complete(name)
        short = name[:2]
        if not options and short != "--" and self.complete(short) == [short]:  # such as -qawq
            options, values = [short], (part.arguments[0][2:],)
        if len(options) == 1:
            option = ParsedOption.of(self._by_option[options[0]], values, options[0])
        elif self.is_recorded and not options:
            return ParsedOption(part.arguments, name)
        else:
            option = ParsedOption.of(Flag((name,), nargs="?", is_optional=True), values, name)
        if name in REPLACEMENTS and len(options) > 1:
            option.fault = f"vLLM has no flag {name}{did_you_mean(name, ())}"
        elif len(options) > 1:
            option.fault = f"{name} may stand for {list_some(options, _MAX_MATCHES)}: write the whole name"
        elif part.keys and not values:
            option.fault = f"{part.spelling} needs a value"
        elif self.is_recorded and not part.keys:
            option.fault = _count_fault(option, part)
        return option

    def complete(self, name: str) -> list[str]:
        """The options to which argparse may complete a name. Several options if the name is ambiguous."""
        if name in self._by_option:
            return [name]
        if self.is_recorded:
            return [option for option in self._by_option if option.startswith(name)]
        return [flag.name for flag in USUAL if flag.name.startswith(name) and name.startswith(flag.shortest)]

    def num_values(self, name: str) -> int | str | None:
        """The number of the flag's values in the form of argparse's `nargs`. None for an unknown flag."""
        options = self.complete(name)
        if len(options) == 1:
            return self._by_option[options[0]].nargs
        if self.is_recorded:
            return None
        return 0 if name.startswith(_SWITCHES) else "?"


def _count_fault(option: ParsedOption, part: ParsedOption) -> str:
    """Why argparse rejects the number of values. Empty if argparse accepts the number."""
    nargs, values = option.flag and option.flag.nargs, option.values
    is_attached = len(part.arguments) == 1 and bool(values)
    if nargs == 0:
        return f"{option.name} ignored explicit argument {values[0]!r}" if is_attached else ""
    if nargs == "?" or is_attached or (values and not is_flag_like(values[0])):
        return ""
    return f"{option.name} needs {'one' if nargs == 1 else 'at least one'} argument"


@cache
def flags_that_change(*what: Change) -> frozenset[str]:
    """The names of flags that make one of these changes."""
    return frozenset(name for flag in USUAL if {*what} & {*flag.changes} for name in flag.names)
