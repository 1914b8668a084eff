"""Takes logins out of addresses before these are shown to anybody."""

import re
from typing import Final

MASK: Final = "********"

_LOGIN: Final = re.compile(r"(?<=//)[^/?#\s]+(?=@)")


def without_login(text: str) -> str:
    """`https://name:password@host` with stars for what comes before the @."""
    return _LOGIN.sub(MASK, text)
