"""Models that pool: read `core`, then `heads`."""
