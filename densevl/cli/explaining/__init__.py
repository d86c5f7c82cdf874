"""`densevl explain`."""
