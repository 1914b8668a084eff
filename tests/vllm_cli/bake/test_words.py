"""Flags that differ from build to run are left out of the start at build time."""

import pytest

from vllm_cli.bake.subject import without_addresses


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("model", "--port", "8000", "--max-model-len", "4k"), ("model", "--max-model-len", "4k")),
        (("--host=0.0.0.0", "model"), ("model",)),
        (("model", "--ssl_keyfile", "k.pem", "--ssl-certfile=c.pem"), ("model",)),
        (("model", "--api-key", "--enforce-eager"), ("model", "--enforce-eager")),
        (("model", "--enforce-eager", "-tp", "2"), ("model", "--enforce-eager", "-tp", "2")),
        (("model", "--api-key", "a", "b", "--dtype=auto"), ("model", "--dtype=auto")),
        (("model", "--api_k=a", "--por", "1", "--no-such-flag", "x"), ("model", "--no-such-flag", "x")),
        (("--dtype", "auto", "--", "--port"), ("--dtype", "auto", "--", "--port")),
    ],
    ids=["port", "attached", "certificate", "no-value", "others", "several-keys", "abbreviated", "after-dashes"],
)
def test_addresses_and_keys_are_left_out(words: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert without_addresses(words) == kept
