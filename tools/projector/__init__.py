"""Training of projectors that join two towers that were never trained together (ShareLock, 2024)."""
