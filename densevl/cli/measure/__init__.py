"""Commands that measure settings."""
