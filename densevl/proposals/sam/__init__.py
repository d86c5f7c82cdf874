"""Segment Anything: its published checkpoints, densevl's own, and their proposals."""
