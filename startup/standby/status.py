"""A standby's status, and the request with which another process gets the status."""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Final, Literal

from startup.standby import sockets

STATUS: Final = b"status"
STOP: Final = b"stop"
"""The requests on the control socket. The standby answers with its status as JSON, and ends after STOP."""

_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 1 << 18

TemplateState = Literal["importing", "ready", "failed", "over the memory limit"]


@dataclass(frozen=True, kw_only=True)
class TemplateStatus:
    """The status of a template process."""

    kind: str
    state: TemplateState
    pid: int | None
    import_s: float | None
    """Seconds that the imports took, which each warm start saves. None until the imports are done."""
    num_starts: int
    """The number of servers that template processes of this kind have forked."""
    memory_bytes: int
    """The PSS in bytes. A page that is shared with servers counts in part."""
    error: str | None


@dataclass(frozen=True, kw_only=True)
class StandbyStatus:
    """The status of a running standby."""

    pid: int
    uptime_s: float
    memory_bytes: int
    """The PSS of the standby and its template processes, in bytes."""
    models: tuple[str, ...]
    templates: tuple[TemplateStatus, ...]

    @property
    def is_settled(self) -> bool:
        """Whether all template processes have finished their imports or failed."""
        return all(template.state != "importing" for template in self.templates)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: bytes) -> "StandbyStatus":
        """Reads the JSON that `to_json` writes. Raises ValueError for other content."""
        import msgspec  # noqa: PLC0415 - not for --help of commands that may ask a standby

        return msgspec.json.decode(text, type=cls)


class NoStandbyError(Exception):
    """No standby of this user and Python environment answers."""


def ask(request: bytes) -> StandbyStatus:
    """Sends a request to the running standby. Returns its status. Raises NoStandbyError if none answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_TIMEOUT_S)
            sockets.connect(connection, sockets.CONTROL)
            connection.send(request)
            return StandbyStatus.from_json(connection.recv(_MAX_BYTES))
    except TimeoutError as err:
        raise NoStandbyError(f"the standby does not answer in {_TIMEOUT_S:g} s") from err
    except (FileNotFoundError, ConnectionRefusedError) as err:
        raise NoStandbyError("no standby runs for this user and Python environment") from err
    except (OSError, ValueError) as err:
        raise NoStandbyError(f"the standby cannot be reached: {err}") from err
