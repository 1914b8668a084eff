"""The addresses of the hub: HF_ENDPOINT may list mirrors, of which libraries know only one."""

import os
from typing import Final

from envs.registry import env

_HUB: Final = "https://huggingface.co"


def hub_endpoints() -> tuple[str, ...]:
    """The addresses in the order in which they are tried."""
    listed, given = _split(env.VCLI_HUB_ENDPOINTS.get()), _split(env.HF_ENDPOINT.get())
    return (listed if listed[:1] == given else given) or (_HUB,)


def use_first_endpoint() -> None:
    """Leaves only the first address in HF_ENDPOINT, which libraries of this process and its children read."""
    listed = _split(env.HF_ENDPOINT.get())
    if len(listed) > 1:
        os.environ[env.VCLI_HUB_ENDPOINTS.name] = ",".join(listed)
        os.environ[env.HF_ENDPOINT.name] = listed[0]


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (address.strip().rstrip("/") for address in (text or "").split(",")))))
