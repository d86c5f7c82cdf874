"""The results of an evaluation, as files."""
