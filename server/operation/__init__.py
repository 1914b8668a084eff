"""The operation of the server, for all requests: admission, served models, readiness, drain."""
