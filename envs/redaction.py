"""Finds secrets, and hides them in arguments and addresses before these are shown or stored.

Every command runs this code first (`base.machine.command_line`), so only functions that need `re` import it.
"""

from collections.abc import Callable, Iterable

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    import re

MASK = "********"
_LEAST_QUOTED = 4
"""The least length of a secret that is searched for in texts. Shorter secrets may occur in ordinary words."""

SECRET_ENDINGS = (
    "key",
    "key_id",
    "keyid",
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "_pass",
    "_pat",
    "auth",
    "authorization",
    "cookie",
    "signature",
    "sig",
    "connection_string",
    "otlp_headers",
    "traces_headers",
    "api_keys",
    "apikeys",
    "secrets",
    "passwords",
)
"""Endings of the names of secrets, such as --hf-token, AWS_SECRET_ACCESS_KEY, apiKey."""

_FLAGS = (("--api-k", "--api-key"), ("--hf-t", "--hf-token"))
"""vLLM's secret flags, each with its shortest abbreviation. A shorter word could be another flag."""
_LIST = "--api-k"

_LOGIN = r"(?<=//)[^/?#\s]+(?=@)"
_PARAMETER = r"(?P<name>[?&;][^=&;?\s]*=)(?P<quote>)(?P<value>[^&;\s]*)"
_BEARER = r"(?i)(?<=\bbearer )\s*\S+"
_MEMBER = r'(?P<name>"(?:[^"\\]|\\.)*"\s*:\s*)(?P<quote>"?)(?P<value>(?<=")(?:[^"\\]|\\.)*|\d+)'
_QUOTED = r"""'[^']*'|"[^"]*\""""
_SHELL_PART = rf"""\s+|(?:{_QUOTED}|\\.|[^\s'"\\])+|."""


def _mask(_: str) -> str:
    return MASK


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag, header or JSON member with this name has a secret value."""
    return name.lower().replace("-", "_").endswith(SECRET_ENDINGS)


def is_secret_flag(name: str) -> bool:
    """Whether a flag has a secret value. The flag may be abbreviated."""
    name = name.replace("_", "-")
    if is_secret_name(name):
        return True
    return any(name.startswith(least) and flag.startswith(name) for least, flag in _FLAGS)


def hide_in_arguments(arguments: Iterable[str], hide: Callable[[str], str] = _mask) -> list[str]:
    """Replaces the secrets in a command line of this or another program.

    Args:
        arguments: flags, `NAME=value`, JSON, addresses, and whole commands as one argument.
        hide: returns the replacement of a secret.
    """
    shown = []
    num_secrets = 0
    """The number of next arguments that are secret. 2 means all arguments up to the next flag."""
    is_list = False
    for argument in arguments:
        name, is_attached, value = argument.partition("=")
        is_flag = argument.startswith("-") and len(argument) > 1 and not argument[1].isdigit()
        if num_secrets and not (is_flag and (num_secrets > 1 or argument.startswith("--"))):
            shown.append(hide(argument))
            num_secrets = 2 if is_list else 0
            continue
        is_secret = is_secret_flag(name) if is_flag else is_secret_name(name)
        num_secrets = int(is_secret and is_flag and not is_attached)
        is_list = name.replace("_", "-").startswith(_LIST)
        is_whole = is_secret and is_attached and not any(map(str.isspace, name))
        shown.append(f"{without_login(name, hide)}={hide(value)}" if is_whole else _hide_in(argument, hide))
    return shown


def hide_in_command(text: str, hide: Callable[[str], str] = _mask) -> str:
    """Replaces the secrets in a command line that a shell would split. Its blanks and quotes stay."""
    if "earer " in text:
        text = _replace(_BEARER, lambda token: hide(token[0]), text)
    if not _may_name_secret(text):
        return without_login(text, hide)
    import re  # noqa: PLC0415

    text = _hide_members(text, hide)
    parts = re.findall(_SHELL_PART, text)
    if len(parts) == 1 and any(map(str.isspace, text)):  # one argument, with blanks between quotes

        def hide_within(part: re.Match[str]) -> str:
            opening, content, closing = part[0][0], part[0][1:-1], part[0][-1]
            return opening + hide_in_command(content, hide) + closing

        return re.sub(_QUOTED, hide_within, text)
    shown = iter(hide_in_arguments((part for part in parts if not part.isspace()), hide))
    return "".join(part if part.isspace() else next(shown) for part in parts)


def hide_quoted(text: str, arguments: Iterable[str]) -> str:
    """Hides the secrets of a command line in a text that may quote them, such as an error message."""
    secrets: list[str] = []

    def note(secret: str) -> str:
        secrets.append(secret)
        return MASK

    hide_in_arguments(arguments, note)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK) if len(secret) >= _LEAST_QUOTED else text
    return text


def without_login(text: str, hide: Callable[[str], str] = _mask) -> str:
    """Replaces everything between // and @ in addresses such as `https://name:password@host`."""
    if "//" not in text or "@" not in text:
        return text
    return _replace(_LOGIN, lambda login: hide(login[0]), text)


def _hide_in(argument: str, hide: Callable[[str], str]) -> str:
    is_command = any(map(str.isspace, argument))
    return without_login(hide_in_command(argument, hide) if is_command else _hide_members(argument, hide), hide)


def _hide_members(text: str, hide: Callable[[str], str]) -> str:
    """Hides secret members of JSON objects, and secret parameters of addresses and connection strings."""

    def hide_value(match: "re.Match[str]") -> str:
        name, quote, value = match.groups()
        return f"{name}{quote}{hide(value)}" if is_secret_name(name.rstrip('=": \t\n')) else match[0]

    if "{" in text and '"' in text and _may_name_secret(text):
        text = _replace(_MEMBER, hide_value, text)
    return _replace(_PARAMETER, hide_value, text) if "=" in text and _may_name_secret(text) else text


def _may_name_secret(text: str) -> bool:
    """Whether the text may contain the name of a secret. Needs no `re`."""
    folded = text.lower().replace("-", "_")
    for ending in SECRET_ENDINGS:
        begin = folded.find(ending)
        while begin >= 0:
            end = begin + len(ending)
            if not folded[end : end + 1].isalnum():
                return True
            begin = folded.find(ending, end)
    return any(least.replace("-", "_") in folded for least, _ in _FLAGS)


def _replace(pattern: str, by: "Callable[[re.Match[str]], str]", text: str) -> str:
    import re  # noqa: PLC0415

    return re.sub(pattern, by, text)
