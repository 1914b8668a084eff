"""The flags of `serve` that a start at build time leaves out: it has a private socket and no keys."""

from collections.abc import Iterable
from typing import Final

from vllm_cli.flags.secret_flags import without_flags

_LEFT_OUT: Final = (
    "--host", "--port", "--uds", "--api-key", "--api-key-file", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs",
    "--ssl-cert-reqs", "--startup-report", "--startup-trace",
)  # fmt: skip


def without_addresses(words: Iterable[str]) -> tuple[str, ...]:
    """The words without addresses, certificates, keys and reports, which differ from build to run."""
    return tuple(without_flags(words, _LEFT_OUT))
