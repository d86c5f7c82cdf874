"""The server's counters, in the format of Prometheus."""

from __future__ import annotations

from collections import Counter

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Counters:
    """Counts requests by route and status, and the time of answers. Only the event loop uses it."""

    def __init__(self) -> None:
        """Start all counts at zero."""
        self.requests: Counter[tuple[str, int]] = Counter()
        self._took: dict[str, list[float]] = {}  # by route: counts up to each bucket, total count, and sum

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests[route, status] += 1
        if status == 200:
            row = self._took.setdefault(route, [0.0] * (len(BUCKETS) + 2))
            for index, limit in enumerate(BUCKETS):
                row[index] += seconds <= limit
            row[-2] += 1
            row[-1] += seconds

    def mean(self, route: str) -> float:
        """Return the mean seconds per answer; 1 before the first."""
        row = self._took.get(route)
        return row[-1] / row[-2] if row else 1.0

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Return the text format. `gauges`: description and value by name."""
        lines = ["# HELP densevl_requests_total Answers by route and status.", "# TYPE densevl_requests_total counter"]
        lines += [
            f'densevl_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += ["# HELP densevl_seconds Time to a good answer.", "# TYPE densevl_seconds histogram"]
        for route, row in sorted(self._took.items()):
            for limit, count in zip((*BUCKETS, "+Inf"), row[:-1], strict=True):
                lines.append(f'densevl_seconds_bucket{{route="{route}",le="{limit}"}} {count:g}')
            lines += [f'densevl_seconds_sum{{route="{route}"}} {row[-1]:.6g}']
            lines += [f'densevl_seconds_count{{route="{route}"}} {row[-2]:g}']
        for name, (what, value) in gauges.items():
            lines += [f"# HELP densevl_{name} {what}", f"# TYPE densevl_{name} gauge", f"densevl_{name} {value:g}"]
        return "\n".join([*lines, ""])
