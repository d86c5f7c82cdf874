"""The parts a `Recipe` is made of, as plain data; what each does stands in its formula and in one place of the engine.

Block numbers in `layers` count from 1 in a tower of 12 blocks, as the papers give them, and are scaled to other depths.
G stands for the matrix of cosines between patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from densevl.errors import RecipeError, suggest

PROJECTIONS = ("qk", "qq", "kk", "vv")
AFFINITIES = ("tap", "proxy")
KINDS = (*PROJECTIONS, "id", *AFFINITIES)
PROXY_FEATURES = ("tokens", "q", "k", "v", "q+k")


def check(value: object, allowed: tuple[str, ...], what: str) -> None:
    """Raise RecipeError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise RecipeError(f"{what} {value!r} is not one of {', '.join(allowed)}{suggest(str(value), allowed)}")


def _positive(value: float, what: str) -> None:
    if not value > 0:
        raise RecipeError(f"{what} must be above 0, got {value!r}")


@dataclass(frozen=True)
class Gaussian:
    """Neighbourhood bias exp(-dist^2 / (2 std^2)) added to the logits; `std` in patches, 0 for CLS (NACLIP)."""

    std: float

    def __post_init__(self) -> None:
        _positive(self.std, "the Gaussian's std in patches")


@dataclass(frozen=True)
class Foveal:
    """Bias of CLS towards the patches of a box: a Gaussian about its centre, scaled to 0..`peak` inside (FALIP).

    Attributes:
        std: width in patches; far wider than a box, so that the bump is nearly a paraboloid.
        peak: the largest bias, in logits.
    """

    std: float = 100.0
    peak: float = 0.2

    def __post_init__(self) -> None:
        _positive(self.std, "the foveal bias's std in patches")
        _positive(self.peak, "the foveal bias's peak")


@dataclass(frozen=True)
class Softmax:
    """softmax(temperature * G), for affinities: no threshold."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.temperature, "temperature")


@dataclass(frozen=True)
class Relative:
    """softmax(gamma * (G - beta * mean G)) with what is under zero left out (ProxyCLIP).

    The mean is taken over one image. With `floor`, cosines under it count as 0 first, in the mean too (SFP).
    """

    gamma: float = 3.0
    beta: float = 1.2
    floor: float | None = None

    def __post_init__(self) -> None:
        _positive(self.gamma, "gamma")


@dataclass(frozen=True)
class Floor:
    """G where it is at least `floor`, else 0; rows divided by their sums."""

    floor: float


@dataclass(frozen=True)
class Sinkhorn:
    """An attention map made symmetric and doubly normalised before it is used (CLIPer)."""


Rule = Softmax | Relative | Floor | Sinkhorn


@dataclass(frozen=True)
class Term:
    """One way for patches to look at each other.

    Attributes:
        kind: "qk" the trained attention; "qq", "kk", "vv" a projection with itself; "id" only itself; "tap" cosines of
            the outputs of a block; "proxy" cosines of another model's features.
        weight: its share.
        layers: for projections, the blocks whose maps are averaged (none: the rewired block itself); for "tap" the
            block whose output is compared.
        rule: for "tap" and "proxy", how cosines become weights; for "qk" of other blocks, `Sinkhorn` if wanted.
        regions: look only within the segment map given as `regions`.
    """

    kind: str
    weight: float = 1.0
    layers: tuple[int, ...] = ()
    rule: Rule | None = None
    regions: bool = False

    def __post_init__(self) -> None:
        check(self.kind, KINDS, "term")
        _positive(self.weight, f"the weight of term {self.kind}")
        if self.kind in AFFINITIES and (self.rule is None or isinstance(self.rule, Sinkhorn)):
            raise RecipeError(f"term {self.kind} is a cosine; give a rule: Relative, Floor or Softmax")
        if self.kind == "tap" and len(self.layers) != 1:
            raise RecipeError("term tap compares the outputs of one block; give one in layers")
        if self.kind in PROJECTIONS and self.rule is not None and not isinstance(self.rule, Sinkhorn):
            raise RecipeError(f"term {self.kind} goes through the recipe's own softmax; leave its rule out")
        if isinstance(self.rule, Sinkhorn) and not self.layers:
            raise RecipeError("Sinkhorn works on the maps of other blocks; name them in layers")


@dataclass(frozen=True)
class Purify:
    """Replace outlier patches, before the last block, by the mean of their sound neighbours (SC-CLIP, SFP).

    Attributes:
        by: "lof", local outlier factor over `neighbours` nearest patches, the worst `share` of them; or
            "attention", patches CLS looks at more than they look at themselves (`factor` times), at most `most`.
    """

    by: str = "lof"
    neighbours: int = 30
    share: float = 0.05
    factor: float = 1.5
    most: int = 10

    def __post_init__(self) -> None:
        check(self.by, ("lof", "attention"), "purify by")


@dataclass(frozen=True)
class Smooth:
    """Spread features over like patches by a row-normalised affinity.

    Attributes:
        by: "tap" or "proxy": whose features are compared. layer: the block, for "tap".
        floor: cosines under it count as 0. purified: the tapped features have their outliers replaced too.
    """

    by: str
    floor: float
    layer: int = 0
    purified: bool = False

    def __post_init__(self) -> None:
        check(self.by, AFFINITIES, "smooth by")


@dataclass(frozen=True)
class Values:
    """A further source of values: the sum of some blocks' outputs, or their normalised inputs.

    Attributes:
        layers: blocks. normed: take each block's normalised input instead of its output (CLIPer).
        only: the kind of the one term applied to them, with full weight (SFP); None for all the recipe's terms.
        mean: take the mean of the outputs instead of their sum (CorrCLIP).
    """

    layers: tuple[int, ...]
    normed: bool = False
    only: str | None = None
    mean: bool = False


@dataclass(frozen=True)
class Mix:
    """Spread a stitched image by the attention of SAM's encoder, cut by its values' cosines (Trident).

    Attributes:
        factor: pairs over this many times their mean cosine count. cap: the highest limit.
        negative: replaces a limit below 0, or None.
    """

    factor: float = 1.2
    cap: float = 0.9
    negative: float | None = None


@dataclass(frozen=True)
class Spread:
    """Propagate the windows' scores together over a graph of patches that a proxy finds alike (LPOSS).

    Attributes:
        alpha: how far labels travel. neighbours: edges per patch. power: exponent of the cosine.
        falloff: per pixel of distance. steps: of the solver; None solves to the end, the authors stop at 10.
    """

    alpha: float = 0.95
    neighbours: int = 400
    power: float = 3.0
    falloff: float = 0.01
    steps: int | None = 10


@dataclass(frozen=True)
class RegionScope:
    """How a segment map is used (CorrCLIP).

    Attributes:
        merge: regions whose mean proxy features are this close to the closest pair's cosine become one; None: not.
        blank: the id of what belongs to no segment; those patches look wherever the cosine is above the mean. None if
            every patch belongs to one.
        cls: weight of the region's own image embedding: a copy of CLS that sees the region alone, in every block.
    """

    merge: float | None = None
    blank: int | None = 0
    cls: float = 0.0


@dataclass(frozen=True)
class LabelFeedback:
    """Look twice: patches of one first-pass label draw each other (ResCLIP's semantic feedback).

    logits = gain * ((1 - share) * S + share * F) + bias, F from the labels of the first pass.

    Attributes:
        share, gain: the formula's.
        threshold: first-pass probabilities under it fall to the first label. temperature: of that softmax.
    """

    share: float = 0.7
    gain: float = 2.0
    threshold: float = 0.1
    temperature: float = 40.0


@dataclass(frozen=True)
class ScoreFeedback:
    """Look twice: patches with like first-pass distributions over the words draw each other (FSA).

    Attributes:
        scale: of the first-pass logits; base_scale: of the uniform-attention logits taken away from them.
        share: probability mass of partners that each patch keeps. sharpness: of the second affinity.
    """

    scale: float = 20.0
    base_scale: float = 35.0
    share: float = 0.45
    sharpness: float = 3.0


Feedback = LabelFeedback | ScoreFeedback


@dataclass(frozen=True)
class Pairing:
    """Mix each head's logits with those of a paired head of the proxy (CASS).

    Heads are paired so that their spectra differ most; the proxy's map is kept to its `rank` strongest directions,
    its singular values stretched unless `stretch` is False.
    """

    rank: int = 10
    spectrum: int = 20
    stretch: bool = True


@dataclass(frozen=True)
class ProxyUse:
    """Which proxy a recipe was published with, and what it reads of it.

    Attributes:
        model: its name for `load_proxy`. features: "tokens", "q", "k", "v" or "q+k" of its last block.
        fine: work on the proxy's grid, values interpolated to it (ProxyCLIP); else its features are resized to CLIP's.
        literal: as the code of ProxyCLIP and its followers: the mean cosine is one for the whole batch, and values are
            folded with height and width swapped, which only squares survive.
    """

    model: str
    features: str = "tokens"
    fine: bool = False
    literal: bool = False

    def __post_init__(self) -> None:
        check(self.features, PROXY_FEATURES, "proxy features")


def scaled(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Block numbers given for 12 blocks, in a tower of `depth`: (6, 7, 8, 9) of 12 is (3, 4, 5) of 6.

    The last rewired block is never among them unless it is named as 12.
    """
    if depth == 12:
        return layers
    found = []
    for layer in layers:
        number = depth if layer >= 12 else min(max((layer * depth + 6) // 12, min(layer, 1)), depth - 1)
        if number not in found:
            found.append(number)
    return tuple(found)
