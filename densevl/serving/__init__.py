"""A server: the pipelines over HTTP, and a web page that uses the same API."""
