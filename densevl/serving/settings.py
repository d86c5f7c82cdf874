"""What an operator decides: what may be asked for, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from densevl.errors import OptionError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What the operator allows.

    Attributes:
        models: as `load_backbone` takes them, the first is the default. recipes: for those models that take recipes,
            the first is the default; none is the model's own. proposals: of `proposals.NAMES`, likewise.
        devices: the models are loaded on each. precision, refine: of `Segmenter`. scoring: of `AnomalyDetector`.

    Raises:
        OptionError: no model, or no device.
    """

    models: tuple[str, ...] = ("auto",)
    recipes: tuple[str, ...] = ()
    proposals: tuple[str, ...] = ("mini-sam",)
    devices: tuple[str | None, ...] = (None,)
    precision: str = "float32"
    refine: str | None = None
    scoring: str = "winclip"

    def __post_init__(self) -> None:
        if not self.models or not self.devices:
            raise OptionError("nothing to serve: name at least one model and one device")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        queue: requests that are worked on or wait; one more is answered with 503.
        body: of a request, in megabytes. pixels: of an image, in megapixels. side: of an image, in pixels.
        seconds: that a request may take to arrive.
        labels: classes and synonyms of a request, and words for its background. characters: of either together, which
            is what encoding them costs. normal: normal images of a request.
        prompts: boxes or points of one.
        sessions: labelling sessions at once. session_photos, session_megabytes: of one; corrections: that it takes.
        session_minutes: after which one that nobody asks is forgotten.
        kept: finished answers that are kept, so that another format of the same is not computed again.
        bits: how many of their 16 bits images use; see `read_image`.

    Raises:
        OptionError: a limit below 1.
    """

    queue: int = 8
    body: int = 20
    pixels: int = 40
    side: int = 20_000
    seconds: int = 30
    labels: int = 1000
    characters: int = 30_000
    normal: int = 16
    prompts: int = 200
    sessions: int = 8
    session_photos: int = 100
    session_megabytes: int = 1000
    session_minutes: int = 60
    corrections: int = 2000
    kept: int = 16
    bits: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it is at least 1")
