"""One protocol, several ways to run a request."""
