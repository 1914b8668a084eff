"""Reads files into the page cache: `process` starts the helper process, which runs `worker`."""
