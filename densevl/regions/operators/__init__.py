"""Operators: from a photo and its masks to one vector per region."""
