"""Segment pictures of any size block by block: `source.py` reads, `result.py` decides, `writing.py` writes."""
