"""The benchmark of starts. Begin with `startup.py`. `report.py` makes the result, also of `tools/figures`."""
