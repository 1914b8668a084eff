"""Notifications to a service manager, and sockets from one."""
