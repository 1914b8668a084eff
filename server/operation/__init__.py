"""What the server needs for all requests: admission, served models, readiness, drain."""
