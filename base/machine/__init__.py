"""What this program asks the operating system: files, memory, processors, processes, sockets."""
