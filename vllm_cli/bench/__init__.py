"""Benchmarks of servers. Begin with `serve.py` and `startup.py`. `report.py` makes the result of both."""
