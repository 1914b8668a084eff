"""Notifies a service manager, and takes sockets that the manager has opened."""
