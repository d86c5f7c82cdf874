"""What an evaluation found, as files."""
