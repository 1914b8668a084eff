"""What every request and the server as a whole need: admission, served models, readiness, drain."""
