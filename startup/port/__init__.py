"""Answers probes in a separate process. `responder` starts it, and `responder_process` runs in it."""
