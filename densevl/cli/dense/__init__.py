"""`densevl features` and `densevl points`."""
