"""Segment Anything: its checkpoints, ours, and what they propose."""
