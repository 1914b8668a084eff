"""Benchmarks of servers. Begin to read at serve.py and startup.py; report.py makes the result of both."""
