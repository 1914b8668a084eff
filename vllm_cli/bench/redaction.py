"""Replaces secrets in a command line or an address before it is written to a report."""

import re

_SECRETS = (
    re.compile(r"(--api[-_]key[= ])((?!-)\S+(?: +(?!-)\S+)*)"),  # a list: every word up to the next flag
    re.compile(r"(--hf[-_]token[= ])(\S+)"),
    re.compile(r"(\b\w*(?:KEY|TOKEN|SECRET|PASSWORD)=)(\S+)"),
    re.compile(r"(://)([^/@\s]+)(?=@)"),
)


def redact(text: str) -> str:
    """The text with keys, tokens and passwords replaced by stars."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text
