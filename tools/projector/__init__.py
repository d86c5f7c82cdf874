"""Two towers that were never trained together, joined by projectors (ShareLock, 2024): their training."""
