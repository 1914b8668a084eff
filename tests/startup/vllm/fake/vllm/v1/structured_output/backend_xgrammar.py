"""A backend of structured output."""


class XgrammarBackend:
    """Does nothing."""
