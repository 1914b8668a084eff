"""Forbids captures of graphs at other times."""


def set_cudagraph_capturing_enabled(enabled: bool) -> None: ...
