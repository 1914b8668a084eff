"""Parts of the server that all requests need: admission, served models, readiness, drain."""
