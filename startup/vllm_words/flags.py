"""The flags of the installed vLLM, from the record of an earlier start or, without a record, from a table.

The table has only flags that the launcher reads, each with the decisions of the launcher that it changes.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Literal

from startup.settings.flag import Flag, ValueKind

Change = Literal["modules", "API servers", "no port", "elsewhere", "address"]
"""What a flag changes. `modules`: which modules are imported. `API servers`: whether these are separate
processes. `no port`: this process listens on no port, or with another protocol than HTTP. `elsewhere`: the
server also runs on other machines or behind other sockets. `address`: where the server listens."""


def _flags(table: str, *changes: Change, nargs: int | str = 1, kind: ValueKind = "text") -> Iterator[Flag]:
    """Reads flags from their names. A comma precedes short names, and `|` ends the shortest abbreviation."""
    for text in table.split():
        name, *short = text.replace("|", "").split(",")
        opposites = () if nargs else (f"--no-{name.removeprefix('--')}",)
        shortest = text.partition(",")[0].partition("|")[0]
        yield Flag((name, *short), kind, nargs, opposites, is_optional=True, changes=changes, shortest=shortest)


USUAL: Final = (
    *_flags("--enf|orce-eager --enable-lor|a --enable-expert-parallel,-ep --trust-remote|-code", "modules", nargs=0),
    *_flags("--quantization,-q --runn|er --conv|ert --task --dt|ype --load-|format --model-i|mpl", "modules"),
    *_flags("--distributed-e|xecutor-backend --specu|lative-config,-sc --kv-t|ransfer-config", "modules"),
    *_flags("--attention-b|ackend --op|timization-level --compi|lation-config,-cc", "modules"),
    *_flags("--te|nsor-parallel-size,-tp --pi|peline-parallel-size,-pp", "modules", kind="int"),
    *_flags("--data-parallel-size,-dp --api-s|erver-count,-asc", "modules", "API servers", kind="int"),
    *_flags("--hea|dless", "modules", "no port", "elsewhere", nargs=0),
    *_flags("--grpc --data-parallel-m|ulti-port-external-lb,-dpm", "no port", "elsewhere", nargs=0),
    *_flags("--ssl-k|eyfile --ssl-certf|ile", "no port"),
    *_flags("--data-parallel-e|xternal-lb,-dpe --data-parallel-h|ybrid-lb,-dph", "elsewhere", nargs=0),
    *_flags("--nn|odes,-n --nod|e-rank,-r --data-parallel-ran|k,-dpn", "elsewhere"),
    *_flags("--ho|st --por|t --ud|s", "address"),
    *_flags("--async-scheduling --language-model-only", nargs=0),
    *_flags("--disable-access-log-for-endpoints --data-parallel-b|ackend,-dpb --tokenizer-r|evision --rev|ision"),
    *_flags("--model --tokenizer --hf-c|onfig-path --download|-dir --gen|eration-config --shu|tdown-timeout"),
    *_flags("--hf-t|oken", nargs="?"),
    *_flags("--api-k|ey --served|-model-name --lora-m|odules --ign|ore-patterns --allowed-media-domains", nargs="+"),
    *_flags("--collect-detailed-traces --cpu-offload-params --cudagraph-capture-sizes --logits-processors", nargs="+"),
    *_flags("--kv-cache-dtype-skip-layers --lora-target-modules --numa-bind-cpus --numa-bind-nodes", nargs="+"),
    *_flags("--offload-params --sleep-preserve-parameter-names", nargs="+"),
    *_flags("--max-lora-rank --prefill-context-parallel-size,-pcp --data-parallel-size-|local,-dpl", kind="int"),
    *_flags("--gpu-memory-utilization,--device-memory-utilization", kind="float"),
    *_flags("--kv-cache-memory-bytes", kind="count"),
    *_flags("--max-model-len", kind="token limit"),
    *_flags("--hf-overrides", kind="json or text"),
)
_SWITCHES: Final = ("--no-", "--enable-", "--disable-", "--skip-", "--trust-", "--use-")
"""Prefixes of the switches in tested releases that are not in the table."""


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

    def find(self, name: str) -> Flag | None:
        """The flag of this name or unique abbreviation. None if there is no such flag."""
        options = self.complete(name)
        return self._by_option[options[0]] if len(options) == 1 else None

    def complete(self, name: str) -> list[str]:
        """The options to which argparse may complete a name. Several options if the name is ambiguous."""
        if name in self._by_option:
            return [name]
        if self.is_recorded:
            return [option for option in self._by_option if option.startswith(name)]
        return [flag.name for flag in USUAL if flag.name.startswith(name) and name.startswith(flag.shortest)]

    def num_values(self, name: str) -> int | str | None:
        """The number of the flag's values in the form of argparse's `nargs`. None for an unknown flag."""
        if (flag := self.find(name)) is not None:
            return flag.nargs
        if self.is_recorded:
            return None
        return 0 if name.startswith(_SWITCHES) else "?"


@cache
def flags_that_change(*what: Change) -> frozenset[str]:
    """The names of flags that make one of these changes."""
    return frozenset(name for flag in USUAL if {*what} & {*flag.changes} for name in flag.names)
