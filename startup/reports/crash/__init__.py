"""Records the output of a server's processes, and explains a crash. Start reading at `crash_report.py`."""
