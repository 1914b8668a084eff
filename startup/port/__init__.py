"""Answers probes in a separate process. `responder` starts the process, which runs `responder_process`."""
