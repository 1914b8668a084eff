"""What flags of vLLM change that is decided before vLLM's parser has read them: one row for each flag."""

from collections.abc import Collection
from functools import cache
from typing import Final, Literal, NamedTuple

Change = Literal["modules", "API servers", "no port", "elsewhere", "files"]
"""`modules`: which ones are imported. `API servers`: whether they are processes of their own. `no port`: this
process listens nowhere, or speaks another protocol than HTTP there. `elsewhere`: the server is not on this
machine alone, behind one socket. `files`: which ones are read.
"""


class _Row(NamedTuple):
    names: str
    num_values: int | str
    """As argparse's `nargs`; `?` for one value, if no flag follows."""
    changes: tuple[Change, ...]


_ROWS: Final = (
    _Row("--enforce-eager --enable-lora --enable-expert-parallel -ep --trust-remote-code", 0, ("modules",)),
    _Row("--quantization -q --runner --convert --task --dtype --load-format --model-impl", "?", ("modules",)),
    _Row("--tensor-parallel-size -tp --pipeline-parallel-size -pp", "?", ("modules",)),
    _Row("--distributed-executor-backend --speculative-config --kv-transfer-config", "?", ("modules",)),
    _Row("--attention-backend --optimization-level --compilation-config -cc", "?", ("modules",)),
    _Row("--data-parallel-size -dp --api-server-count -asc", "?", ("modules", "API servers")),
    _Row("--headless", 0, ("modules", "no port", "elsewhere")),
    _Row("--grpc --data-parallel-multi-port-external-lb -dpm", 0, ("no port", "elsewhere")),
    _Row("--ssl-keyfile --ssl-certfile", "?", ("no port",)),
    _Row("--data-parallel-external-lb --data-parallel-hybrid-lb", 0, ("elsewhere",)),
    _Row("--nnodes --node-rank --data-parallel-rank", "?", ("elsewhere",)),
    _Row("--lora-modules --ignore-patterns", "+", ("files",)),
)
_SEVERAL: Final = (
    "--allowed-media-domains", "--api-key", "--collect-detailed-traces", "--cpu-offload-params",
    "--cudagraph-capture-sizes", "--hf-token", "--ignore-patterns", "--kv-cache-dtype-skip-layers",
    "--logits-processors", "--lora-modules", "--lora-target-modules", "--numa-bind-cpus", "--numa-bind-nodes",
    "--offload-params", "--served-model-name", "--sleep-preserve-parameter-names",
)  # fmt: skip
"""Flags of tested releases that take several values."""


_ABBREVIATED: Final = (
    "--ho|st --por|t --ud|s --hea|dless --grpc| --grpc-|port --ssl-k|eyfile --ssl-certf|ile --api-s|erver-count "
    "--data-parallel-size| --data-parallel-size-|local --data-parallel-m|ulti-port-external-lb "
    "--data-parallel-h|ybrid-lb --data-parallel-e|xternal-lb --data-parallel-b|ackend --data-parallel-ran|k "
    "--nn|odes --nod|e-rank --te|nsor-parallel-size --pi|peline-parallel-size --distributed-e|xecutor-backend "
    "--enf|orce-eager --enable-lor|a --lora-m|odules --dt|ype --quantization| --runn|er --conv|ert "
    "--load-|format --model-i|mpl --served|-model-name --tokenizer| --tokenizer-r|evision --rev|ision "
    "--hf-c|onfig-path --hf-t|oken --download|-dir --ign|ore-patterns --gen|eration-config "
    "--skip-t|okenizer-init --specu|lative-config --kv-t|ransfer-config --compi|lation-config "
    "--op|timization-level --attention-b|ackend --gpu|-memory-utilization --kv-cache-mem|ory-bytes "
    "--shut|down-timeout --trust-remote|-code --max-model|-len"
)
"""The flags that are read here, each behind what no other flag of vLLM 0.29 to 0.33 begins with."""
_OF_PORT: Final = ("--host", "--port", "--uds")


def whole_name(name: str, known: Collection[str]) -> str:
    """The whole name of a flag: argparse completes a name with which only one flag begins.

    Args:
        known: all flags of the installed vLLM; empty before they are recorded.
    """
    usual = (flag for flag, length in _least_lengths().items() if len(name) >= length)
    found = [flag for flag in ((*known, "--help") if known else usual) if flag.startswith(name)]
    return found[0] if len(found) == 1 and name not in known else name


def may_be_short(name: str) -> bool:
    """Whether a name is no flag that is read here, and may stand for one."""
    return name.startswith("--") and name not in _least_lengths() and any(f.startswith(name) for f in _least_lengths())


def may_hide_port(name: str) -> bool:
    """Whether a name may stand for a flag that decides where vLLM listens."""
    flags = (*_OF_PORT, *flags_that_change("no port"))
    return len(name) > 2 and name not in _least_lengths() and any(flag.startswith(name) for flag in flags)


@cache
def _least_lengths() -> dict[str, int]:
    return {text.replace("|", ""): text.index("|") for text in _ABBREVIATED.split()}


@cache
def flags_that_change(what: Change) -> frozenset[str]:
    """The names of these flags."""
    return frozenset(name for row in _ROWS if what in row.changes for name in row.names.split())


def num_values(flag: str) -> int | str:
    """How many words behind a flag are its values; for one that has no row, `?`."""
    return _num_values().get(flag, "?")


@cache
def _num_values() -> dict[str, int | str]:
    rows = {name: row.num_values for row in _ROWS for name in row.names.split()}
    return rows | dict.fromkeys(_SEVERAL, "+")
