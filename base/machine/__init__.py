"""This program's questions to the operating system: files, memory, processors, processes, sockets."""
