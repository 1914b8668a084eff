"""Processes of one start: signals, death pipes, messages, forks of a forkserver."""
