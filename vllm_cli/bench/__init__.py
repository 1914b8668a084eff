"""Benchmarks of servers: begin at serve.py and startup.py; report.py makes the result of both."""
