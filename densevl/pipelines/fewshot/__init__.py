"""A few examples beside the words."""
