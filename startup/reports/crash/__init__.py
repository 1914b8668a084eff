"""The records that a server keeps in case it crashes, and the digest of a crash. Begin at crash_report.py."""
