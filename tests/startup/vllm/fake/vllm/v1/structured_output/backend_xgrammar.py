"""A backend."""


class XgrammarBackend:
    """Does nothing."""
