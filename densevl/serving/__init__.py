"""A server: the pipelines over HTTP, and one page over the same API."""
