"""The engine: `process` runs its loop; `core`, `intake` and `scheduler` decide what a step computes."""
