"""Masks logins in addresses before they are shown."""

import re
from typing import Final

MASK: Final = "********"

_LOGIN: Final = re.compile(r"(?<=//)[^/?#\s]+(?=@)")


def without_login(text: str) -> str:
    """`https://name:password@host` with stars in place of everything between // and @."""
    return _LOGIN.sub(MASK, text)
