"""The records that explain a crash, and the digest of a crash. Begin reading with `crash_report.py`."""
