"""Loads plugins, of which there are none."""


def load_general_plugins() -> None:
    """Does nothing."""
