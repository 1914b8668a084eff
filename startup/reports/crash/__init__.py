"""The records that a server keeps for a crash, and the digest of a crash. Begin with `crash_report.py`."""
