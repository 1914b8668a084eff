"""What a server keeps for the case of a crash, and the digest of a crash; begin with `crash_report`."""
