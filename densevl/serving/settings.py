"""Settings of the operator: what clients may use, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from densevl.errors import OptionError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What the operator allows.

    Attributes:
        models: names for `load_backbone`, the first is the default. recipes: for the models that use recipes, the first
            is the default; none is the model's own. proposals: names of `proposals.NAMES`, the first is the default.
        devices: the models are loaded on each. precision, refine: of `Segmenter`. scoring: of `AnomalyDetector`.

    Raises:
        OptionError: If there is no model or no device.
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
    """Limits of one request, and of all together.

    Attributes:
        queue: requests that run or wait; further ones get a 503.
        body: megabytes of a request. pixels: megapixels of an image. side: pixels of an image's side.
        seconds: time for a request to arrive.
        labels: classes and synonyms of a request, and words of its background. characters: of either together, which
            is what encoding them costs. normal: normal images of a request.
        prompts: boxes or points of a request.
        sessions: open labelling sessions. session_photos, session_megabytes, corrections: of one session.
        session_minutes: a session is forgotten after this time without requests.
        kept: cached answers, so that another format of the same answer is not computed again.
        bits: how many of their 16 bits images use; see `read_image`.

    Raises:
        OptionError: If a limit is below 1.
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
                raise OptionError(f"{name} is {value}; it must be at least 1")
