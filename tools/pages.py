"""Pages of docs/ that hold generated parts between two markers."""

from __future__ import annotations


def replaced(text: str, new: str, start: str, end: str) -> str:
    """Replace the part of a page between two markers; `new` includes the markers.

    Raises:
        SystemExit: If the page lacks the markers.
    """
    if start not in text or end not in text:
        raise SystemExit(f"the page lacks the markers {start} and {end}")
    head, rest = text.split(start, 1)
    return head + new + rest.split(end, 1)[1]
