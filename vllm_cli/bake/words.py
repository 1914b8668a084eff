"""The flags of `serve` that a start at build time leaves out: it has a private socket and no keys."""

from collections.abc import Sequence
from typing import Final

_WITH_VALUE: Final = (
    "--host", "--port", "--uds", "--api-key", "--api-key-file", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs",
    "--ssl-cert-reqs", "--startup-report", "--startup-trace",
)  # fmt: skip


def without_addresses(words: Sequence[str]) -> tuple[str, ...]:
    """The words without addresses, certificates, keys and reports, which differ from build to run."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, is_attached, _ = word.partition("=")
        if name.replace("_", "-") not in _WITH_VALUE:
            kept.append(word)
        elif not is_attached and rest and not rest[0].startswith("-"):
            rest.pop(0)
    return tuple(kept)
