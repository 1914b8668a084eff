"""The forward pass of a step: read `packed_runner`, then `batch` and `attention`."""
