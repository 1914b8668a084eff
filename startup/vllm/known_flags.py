"""What flags of vLLM change that is decided before vLLM's parser has read them: one row for each flag."""

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
