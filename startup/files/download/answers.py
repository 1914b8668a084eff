"""Which answers of a hub pass: for its client, and for the helper that imports little."""


def is_worth_a_retry(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in (408, 425, 429) or status >= 500
