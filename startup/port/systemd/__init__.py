"""Notifies a service manager, and takes sockets that it has opened."""
