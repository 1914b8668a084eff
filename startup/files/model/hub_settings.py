"""The hub's settings in the environment, with the names and precedence of huggingface_hub's own client.

An empty variable counts as unset, and HF_ENDPOINT may contain several addresses.
`tests/startup/files/model/test_hub_settings.py` compares the settings with the client's.
"""

import os
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from envs.registry import env

_HUB: Final = "https://huggingface.co"


def is_offline() -> bool:
    """Whether the user forbids requests to the hub."""
    return (env.TRANSFORMERS_OFFLINE if env.HF_HUB_OFFLINE.raw is None else env.HF_HUB_OFFLINE).get()


def hub_endpoints() -> tuple[str, ...]:
    """The hub's addresses, in the order in which they are tried."""
    listed, given = _split(env.VCLI_HUB_ENDPOINTS.get()), _split(env.HF_ENDPOINT.get())
    return (listed if listed[:1] == given else given) or (_HUB,)


def use_first_endpoint() -> None:
    """Keeps only the first address in HF_ENDPOINT, which libraries in this process and its children read."""
    listed = _split(env.HF_ENDPOINT.get())
    if len(listed) > 1:
        os.environ[env.VCLI_HUB_ENDPOINTS.name] = ",".join(listed)
        os.environ[env.HF_ENDPOINT.name] = listed[0]


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (address.strip().rstrip("/") for address in (text or "").split(",")))))


def hub_token(given: str | None = None) -> str | None:
    """The token for requests: `given`, or else a variable's value, or else the token of `hf auth login`."""
    if given or env.HF_HUB_DISABLE_IMPLICIT_TOKEN.get():
        return _clean(given)
    if token := _clean(env.HF_TOKEN.get() or env.HUGGING_FACE_HUB_TOKEN.get()):
        return token
    with suppress(OSError, UnicodeDecodeError):
        return _clean(env.HF_TOKEN_PATH.get().read_text())
    return None


def _clean(token: str | None) -> str | None:
    return (token or "").replace("\r", "").replace("\n", "").strip() or None


def listing_url(endpoint: str, repo_id: str, revision: str | None) -> str:
    """The URL that lists the commit and the files of a revision."""
    return f"{endpoint}/api/models/{quote(repo_id)}/revision/{quote(revision or 'main', safe='')}"
