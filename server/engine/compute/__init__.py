"""The forward pass of a step. Read `packed_runner`, then `batch` and `attention`."""
