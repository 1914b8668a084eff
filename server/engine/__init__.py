"""The engine. `process` runs its loop. `core`, `pending` and `scheduler` decide what a step computes."""
