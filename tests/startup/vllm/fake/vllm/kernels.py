"""Imported by the API server once the engine is ready."""
