"""The summary of a run over many images. Does not import torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CAUSE = 160  # characters of a message
_NAMED = re.compile(r"""(['"]).*?\1""")


@dataclass
class Summary:
    """Counts that are updated with each image.

    Attributes:
        classes: by name, the number of images it is in and its total amount in them: sum of shares of label maps,
            number of regions, or number of images. measure: which of these three. causes: error messages without the
            parts that differ between images, each with the number of images and the first of them. slowest: an image
            and its seconds.
    """

    classes: dict[str, tuple[int, float]] = field(default_factory=dict)
    measure: str = ""
    images: int = 0
    causes: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest: tuple[str, float] | None = None

    def add(self, image: str, content: Mapping[str, Any], seconds: float | None = None) -> None:
        """Count an image. `content`: the JSON of its result. `seconds`: the time it took, if known."""
        self.images += 1
        if "fractions" in content:
            self.measure, own = "share", {name: share for name, share in content["fractions"].items() if share}
        elif content.get("name"):
            self.measure, own = "images", {content["name"]: 1}
        elif "regions" in content:
            self.measure = "regions"
            own = Counter(row["category_name"] for row in content["regions"] if row.get("category_name"))
        elif "is_anomalous" in content:
            verdict = {True: "anomalous", False: "sound", None: "scored"}[content["is_anomalous"]]
            self.measure, own = "images", {verdict: 1}
        else:
            self.measure, own = "images", {}
        for name, amount in own.items():
            images, before = self.classes.get(name, (0, 0))
            self.classes[name] = images + 1, before + amount
        if seconds is not None and (self.slowest is None or seconds > self.slowest[1]):
            self.slowest = image, seconds

    def fail(self, image: str, error: str) -> None:
        """Count a bad image."""
        cause = " ".join(_NAMED.sub("...", error).split())[:CAUSE]
        count, first = self.causes.get(cause, (0, image))
        self.causes[cause] = count + 1, first

    def facts(self, total: int, computed: int, seconds: float, results: Sequence[str]) -> dict[str, Any]:
        """Return all counts, ready for JSON.

        Args:
            total: number of images given. computed: those computed in this call. seconds: duration of the call.
            results: where the results are.
        """
        return {
            "images": total,
            "done": self.images,
            "computed": computed,
            "failed": sum(count for count, _ in self.causes.values()),
            "classes": {
                name: {"images": images} | ({self.measure: amount} if self.measure != "images" else {})
                for name, images, amount in self.rows()
            },
            "failures": [
                {"cause": cause, "images": count, "first": first} for cause, (count, first) in self.failures()
            ],
            "slowest": None if self.slowest is None else dict(zip(("image", "seconds"), self.slowest, strict=True)),
            "seconds": round(seconds, 3),
            "results": list(results),
        }

    def rows(self) -> list[tuple[str, int, float]]:
        """Return classes, most frequent first: name, images, and regions or the mean share over all images."""
        found = [
            (name, images, amount / max(1, self.images) if self.measure == "share" else amount)
            for name, (images, amount) in self.classes.items()
        ]
        return sorted(found, key=lambda row: (-row[2], row[0]))

    def failures(self) -> list[tuple[str, tuple[int, str]]]:
        """Return causes, most frequent first, each with its number of images and the first of them."""
        return sorted(self.causes.items(), key=lambda row: (-row[1][0], row[0]))
