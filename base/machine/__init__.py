"""Calls to the operating system about files, memory, processors, processes and sockets."""
