"""Answers probes in a process of its own: `responder` starts it, `responder_process` runs in it."""
