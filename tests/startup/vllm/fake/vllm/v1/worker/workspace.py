"""Memory that kernels share. It grows with `self._current_workspaces[workspace_id] = None`."""

from typing import Any


class WorkspaceManager:
    def __init__(self) -> None:
        self._current_workspaces: list[Any] = []

    def lock(self) -> None: ...

    def unlock(self) -> None: ...


_manager = WorkspaceManager()


def current_workspace_manager() -> WorkspaceManager:
    return _manager
