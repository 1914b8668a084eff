"""The flags of the installed vLLM, from the record of an earlier start or, without a record, from a table.

The table has only flags that the launcher reads, each with the decisions of the launcher that it changes.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Literal, NamedTuple

from startup.vllm_words.facts import FlagFact, ValueKind

Change = Literal["modules", "API servers", "no port", "elsewhere", "address"]
"""What a flag changes. `modules`: which modules are imported. `API servers`: whether these are separate
processes. `no port`: this process listens on no port, or with another protocol than HTTP. `elsewhere`: the
server also runs on other machines or behind other sockets. `address`: where the server listens."""


class _Row(NamedTuple):
    names: str
    """Names of flags. A comma precedes short names. `|` ends the shortest abbreviation in vLLM 0.29–0.33."""
    changes: tuple[Change, ...] = ()
    nargs: int | str | None = None
    kind: ValueKind = "text"


_TABLE: Final = (
    _Row("--enf|orce-eager --enable-lor|a --enable-expert-parallel,-ep --trust-remote|-code", ("modules",), 0),
    _Row("--quantization,-q --runn|er --conv|ert --task --dt|ype --load-|format --model-i|mpl", ("modules",)),
    _Row("--distributed-e|xecutor-backend --specu|lative-config,-sc --kv-t|ransfer-config", ("modules",)),
    _Row("--attention-b|ackend --op|timization-level --compi|lation-config,-cc", ("modules",)),
    _Row("--te|nsor-parallel-size,-tp --pi|peline-parallel-size,-pp", ("modules",), kind="int"),
    _Row("--data-parallel-size,-dp --api-s|erver-count,-asc", ("modules", "API servers"), kind="int"),
    _Row("--hea|dless", ("modules", "no port", "elsewhere"), 0),
    _Row("--grpc --data-parallel-m|ulti-port-external-lb,-dpm", ("no port", "elsewhere"), 0),
    _Row("--ssl-k|eyfile --ssl-certf|ile", ("no port",)),
    _Row("--data-parallel-e|xternal-lb,-dpe --data-parallel-h|ybrid-lb,-dph", ("elsewhere",), 0),
    _Row("--nn|odes,-n --nod|e-rank,-r --data-parallel-ran|k,-dpn", ("elsewhere",)),
    _Row("--ho|st --por|t --ud|s", ("address",)),
    _Row("--async-scheduling --language-model-only", nargs=0),
    _Row("--disable-access-log-for-endpoints --data-parallel-b|ackend,-dpb --tokenizer-r|evision"),
    _Row("--model --tokenizer --rev|ision --hf-c|onfig-path --download|-dir --gen|eration-config --shu|tdown-timeout"),
    _Row("--hf-t|oken", nargs="?"),
    _Row("--api-k|ey --served|-model-name --lora-m|odules --ign|ore-patterns --allowed-media-domains", nargs="+"),
    _Row("--collect-detailed-traces --cpu-offload-params --cudagraph-capture-sizes --logits-processors", nargs="+"),
    _Row("--kv-cache-dtype-skip-layers --lora-target-modules --numa-bind-cpus --numa-bind-nodes", nargs="+"),
    _Row("--offload-params --sleep-preserve-parameter-names", nargs="+"),
    _Row("--max-lora-rank --prefill-context-parallel-size,-pcp --data-parallel-size-|local,-dpl", kind="int"),
    _Row("--gpu-memory-utilization,--device-memory-utilization", kind="float"),
    _Row("--kv-cache-memory-bytes", kind="size"),
    _Row("--max-model-len", kind="size or auto"),
    _Row("--hf-overrides", kind="json or text"),
)
_SWITCHES: Final = ("--no-", "--enable-", "--disable-", "--skip-", "--trust-", "--use-")
"""Prefixes of the switches in tested releases that are not in the table."""


class Flags:
    """The flags of one vLLM. Finds the flag that a name, possibly abbreviated, stands for."""

    def __init__(self, recorded: Sequence[FlagFact] = ()) -> None:
        self.is_recorded = bool(recorded)
        """Whether the flags are recorded, and therefore complete."""
        known = (*recorded, FlagFact(("--help", "-h"), nargs=0)) if recorded else USUAL
        self._by_option = {option: fact for fact in known for option in fact.options}

    def find(self, name: str) -> FlagFact | None:
        """The flag of this name or unique abbreviation. None if there is no such flag."""
        options = self.complete(name)
        return self._by_option[options[0]] if len(options) == 1 else None

    def complete(self, name: str) -> list[str]:
        """The options to which argparse may complete a name. Several options if the name is ambiguous."""
        if name in self._by_option:
            return [name]
        least = dict.fromkeys(self._by_option, 0) if self.is_recorded else _least_lengths()
        return [option for option in least if option.startswith(name) and len(name) >= least[option]]

    def num_values(self, name: str) -> int | str | None:
        """The number of the flag's values in the form of argparse's `nargs`. None for an unknown flag."""
        if (fact := self.find(name)) is not None:
            return 1 if fact.nargs is None else fact.nargs
        if self.is_recorded:
            return None
        return 0 if name.startswith(_SWITCHES) else "?"


@cache
def flags_that_change(*what: Change) -> frozenset[str]:
    """The names of flags that make one of these changes."""
    return frozenset(name for row in _TABLE if {*what} & {*row.changes} for fact in _facts(row) for name in fact.names)


@cache
def _least_lengths() -> dict[str, int]:
    """Name of a flag -> the length of its shortest abbreviation, or of the name if there is none."""
    texts = [text.partition(",")[0] for row in _TABLE for text in row.names.split()]
    return {text.replace("|", ""): len(text.partition("|")[0]) for text in texts}


def _facts(row: _Row) -> Iterator[FlagFact]:
    for text in row.names.replace("|", "").split():
        name, *short = text.split(",")
        opposites = (f"--no-{name.removeprefix('--')}",) if row.nargs == 0 else ()
        yield FlagFact((name, *short), row.kind, row.nargs, opposites, is_optional=True)


USUAL: Final = tuple(fact for row in _TABLE for fact in _facts(row))
