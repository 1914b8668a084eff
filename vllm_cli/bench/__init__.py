"""Benchmarks of servers: begin at benchmark.py; serve, liveness and startup say only what differs."""
