"""Segment videos frame by frame: `reading.py` and `writing.py` use PyAV, `result.py` connects them."""
