"""The hub's settings in the environment, with the names and precedence of huggingface_hub's own client.

An empty variable counts as unset, and HF_ENDPOINT may contain several addresses.
`tests/startup/files/model/test_hub_settings.py` compares the settings with the client's.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from envs import foreign
from envs.redaction import without_login
from envs.registry import env

_HUB: Final = "https://huggingface.co"
CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables with certificates of authorities. Which of them counts depends on the client's version."""
PROXIES: Final = (
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)


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
    addresses = (address.strip().rstrip("/") for address in (text or "").split(","))
    return tuple(dict.fromkeys(filter(None, addresses)))


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


def describe_variables(names: Iterable[str]) -> str:
    """The variables that are set, with their values but without logins."""
    given = {name: foreign.text_of(name) for name in names}
    return ", ".join(f"{name}={_without_login(value)}" for name, value in given.items() if value)


def _without_login(address: str) -> str:
    if "://" in address or "@" not in address:
        return without_login(address)
    return without_login(f"//{address}").removeprefix("//")


def unusable_certificates() -> Iterator[tuple[str, str]]:
    """Yields variables for certificates of authorities that name nothing usable, each with the reason."""
    import ssl  # noqa: PLC0415 - only before a download

    for name in CERTIFICATES:
        if not (path := foreign.text_of(name)):
            continue
        try:
            if os.path.isdir(path):  # noqa: PTH112
                os.listdir(path)  # noqa: PTH208
            else:
                ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            yield name, "holds no certificate in PEM format"
        except OSError as err:
            yield name, f"cannot be read: {err.strerror}"


def proxies_of(url: str) -> Iterable[str]:
    """The variables that name the proxy for an address."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - only after a failure
    from urllib.request import proxy_bypass  # noqa: PLC0415

    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    kinds = (f"{scheme}_proxy", "all_proxy") if not proxy_bypass(host) else ()
    names = [name for kind in kinds for name in (kind, kind.upper())]
    given = [name for name in names if foreign.text_of(name)]
    return given[:1]


def listing_url(endpoint: str, repo_id: str, revision: str | None) -> str:
    """The URL that lists the commit and the files of a revision."""
    return f"{endpoint}/api/models/{quote(repo_id)}/revision/{quote(revision or 'main', safe='')}"


def is_worth_a_retry(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 425, 429) or status >= 500
