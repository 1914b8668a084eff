"""Models that pool. Read `core`, then `heads`."""
