"""Two passes of the last block: the scores of the first steer the attention of the second.

`LabelFeedback` is the semantic feedback of ResCLIP (CVPR 2025), `ScoreFeedback` that of FSA. Both need text.
Shape letters: B batch, N patches, D width, T texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densevl.errors import RecipeError
from densevl.lazy import F, torch
from densevl.recipes.batch import Pass
from densevl.recipes.part import Attention, Part
from densevl.recipes.values import between, positive

if TYPE_CHECKING:
    from densevl.recipes.tower import Grid

SHARPNESS = {32: 2.3}  # FSA's by the depth of the tower; 3.0 for others
BLUR_STD = 5.0  # of ResCLIP's smoothing of the label map, in patches


class Feedback(Part, ABC):
    """How the second pass uses the first.

    Attributes:
        steers: whether it changes the logits of the first attention, which must then have logits of its own.
    """

    own_reads = frozenset({"text"})
    steers: bool = False

    @abstractmethod
    def again(
        self, run: Pass, attention: Attention, once: torch.Tensor, v: torch.Tensor, text_TD: torch.Tensor
    ) -> torch.Tensor:
        """The second pass: from the values, and the values spread once (B, A, N, d), to the values spread again."""


@dataclass(frozen=True, repr=False)
class TwoPass(Attention):
    """Attention with two passes if the words are known, otherwise with one.

    Attributes: first: the attention. feedback: how its scores change the second pass.
    """

    first: Attention
    feedback: Feedback

    def __post_init__(self) -> None:
        if not isinstance(self.first, Attention) or not isinstance(self.feedback, Feedback):
            raise RecipeError("two passes are an attention and a feedback, such as LabelFeedback()")
        if any(isinstance(part, TwoPass) for part in self.first.parts()):
            raise RecipeError("two passes within two passes are not known to any method")
        if self.feedback.steers and not self.first.steerable:
            raise RecipeError(
                f"{self.feedback!r} steers logits of the block's own; let a SelfAttention be in the first"
            )

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        once = self.first(run, v)
        text_TD = run.batch.hints.text
        return once if text_TD is None else self.feedback.again(run, self.first, once, v, text_TD)

    def __str__(self) -> str:
        return f"{self.first}; {self.feedback}"


@dataclass(frozen=True, repr=False)
class LabelFeedback(Feedback):
    """Patches with the same first-pass label attract each other.

    logits = gain * ((1 - share) * S + share * F), S the first pass's own, F from its labels: a temperature on S and a
    bias.

    Attributes:
        share, gain: the formula's.
        threshold: first-pass probabilities under it become the first label. temperature: of that softmax.
        literal: as in the authors' code, sample every line between two patches with the step of the longest one, blur
            over the flattened tokens across row ends, and round F to half precision.
    """

    share: float = 0.7
    gain: float = 2.0
    threshold: float = 0.1
    temperature: float = 40.0
    literal: bool = False
    steers = True

    def __post_init__(self) -> None:
        positive(self.gain, "the gain of label feedback")
        positive(self.temperature, "the temperature of label feedback")
        between(self.share, 0, 1, "the share of label feedback")
        between(self.threshold, 0, 1, "the threshold of label feedback")

    def again(
        self, run: Pass, attention: Attention, once: torch.Tensor, v: torch.Tensor, text_TD: torch.Tensor
    ) -> torch.Tensor:
        features_BNE = run.read(run.finish(once))[:, run.prefix :]
        labels_Bhw = self._labels(run, features_BNE, text_TD)
        drawn = label_affinity(labels_Bhw, self.literal)
        term = drawn / drawn.amax(dim=(1, 2), keepdim=True)
        term = (self.share * term.half()).to(term) if self.literal else self.share * term
        return attention(run.steered(self.gain * (1 - self.share), self.gain * term), v)

    def _labels(self, run: Pass, features_BNE: torch.Tensor, text_TD: torch.Tensor) -> torch.Tensor:
        """Label of each patch (B, h, w): the most common of its pixels, the smallest if tied, after PAMR."""
        from densevl.refine import Pamr

        pixels, (h, w) = run.batch.hints.pixels, run.grid
        if pixels is None:
            raise RecipeError("label feedback needs the pixels; call encode_dense")
        unit_BDhw = F.normalize(features_BNE.mT.unflatten(2, (h, w)).float(), dim=1)
        cosines = torch.einsum("bdhw,td->bthw", unit_BDhw, text_TD.to(unit_BDhw))
        at_pixels = F.interpolate(cosines, size=pixels.shape[2:], mode="bilinear", align_corners=False)
        probability, label = (self.temperature * Pamr(pixels)(at_pixels)).softmax(dim=1).max(dim=1)
        label = torch.where(probability < self.threshold, 0, label)
        cells_BhwP = label.unflatten(2, (w, -1)).unflatten(1, (h, -1)).transpose(2, 3).flatten(3)
        votes_BhwT = cosines.new_zeros(*cells_BhwP.shape[:3], text_TD.shape[0])
        return votes_BhwT.scatter_add(3, cells_BhwP, torch.ones_like(cells_BhwP, dtype=votes_BhwT.dtype)).argmax(dim=3)

    def __str__(self) -> str:
        return "a second pass draws patches with like labels together"


def label_affinity(labels_Bhw: torch.Tensor, literal: bool = False) -> torch.Tensor:
    """How strongly patches of one label attract each other: (B, N, N), rows sum to 1.

    It is 1 where two patches share a label, damped by exp(-distance / largest distance) where the straight line between
    them leaves the label, and then blurred by a Gaussian over the grid.
    """
    from densevl.kernels.common import runs

    h, w = labels_Bhw.shape[1:]
    flat, axes = labels_Bhw.flatten(1), (torch.arange(side, device=labels_Bhw.device) for side in (h, w))
    rows, cols = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    (y0, x0), (y1, x1) = (rows[:, None, None], cols[:, None, None]), (rows[None, :, None], cols[None, :, None])
    far = torch.maximum((y1 - y0).abs(), (x1 - x0).abs()).float()
    longest: Any = torch.sym_max(h, w) - 1
    steps, shares = torch.arange(longest + 1, device=rows.device), None
    if literal:
        shares = torch.linspace(0, 1, longest + 1).to(far)
    clear = torch.ones_like(flat[:1, :1, None], dtype=torch.bool)
    for part in runs(longest + 1, 1):  # one step of all lines at a time, or all of them in a graph
        of_line = (steps[part] * far.clamp(min=1).reciprocal()).clamp(max=1)
        at = of_line if shares is None else shares[part]
        y, x = ((start * (1 - at) + end * at).round().long() for start, end in ((y0, y1), (x0, x1)))
        seen = flat[:, y * w + x] == flat[:, :, None, None]
        clear = clear & (seen | (steps[part] > far)).all(dim=-1)
    same = (flat[:, :, None] == flat[:, None]).float()
    damped = torch.exp(-far[..., 0] / torch.sym_max(longest, 1))
    same = torch.where(clear, same, same * damped)
    same = _blur(same, (h, w), literal)
    return same / (same.sum(dim=2, keepdim=True) + 1e-8)


def _blur(same: torch.Tensor, grid: Grid, literal: bool) -> torch.Tensor:
    def line(x: torch.Tensor, length: int) -> torch.Tensor:
        reach = torch.sym_min(length, int(6 * BLUR_STD + 1)) // 2
        taps = torch.arange(int(6 * BLUR_STD + 1), device=x.device) - int(3 * BLUR_STD)
        places = torch.arange(x.shape[-1], device=x.device)

        def kernel(offsets: torch.Tensor) -> torch.Tensor:
            return torch.exp(-(offsets**2) / (2 * BLUR_STD**2)).to(x) * (offsets.abs() <= reach)

        # The sum of all taps is 1, and places near the edge lack those beyond it.
        return x @ (kernel(places[:, None] - places) / kernel(taps).sum())

    if literal:
        return line(same, same.shape[-1])
    planes = line(same.unflatten(2, grid), same.shape[-1])
    return line(planes.mT, same.shape[-1]).mT.flatten(2)


@dataclass(frozen=True, repr=False)
class ScoreFeedback(Feedback):
    """Patches with similar first-pass distributions over the words attract each other.

    With A the first attention: r = softmax(P - U), P the scaled scores of A, U those of uniform attention;
    s = 1 / (1 + KL(r_i || r_j)); each patch keeps its most similar partners up to a probability mass;
    A' = softmax(s exp(sharpness s)); the result is (A'A + AA' + A') / 3 applied to the values, right to left, so that
    only one N x N map is held.

    Attributes:
        scale: of the first-pass logits; base_scale: of the uniform-attention logits subtracted from them.
        share: probability mass of partners that each patch keeps.
        sharpness: of the second affinity; None takes the authors' 3.0, or 2.3 in towers of 32 blocks (ViT-H).
    """

    scale: float = 20.0
    base_scale: float = 35.0
    share: float = 0.45
    sharpness: float | None = None

    def __post_init__(self) -> None:
        positive(self.scale, "the scale of score feedback")
        positive(self.base_scale, "the base scale of score feedback")
        if self.sharpness is not None:
            positive(self.sharpness, "the sharpness of score feedback")
        between(self.share, 0, 1, "the share of score feedback")

    def again(
        self, run: Pass, attention: Attention, once: torch.Tensor, v: torch.Tensor, text_TD: torch.Tensor
    ) -> torch.Tensor:
        def scores(heads: torch.Tensor) -> torch.Tensor:
            y_BNE = run.read(run.block.merge(heads)).float()
            return F.normalize(y_BNE, dim=-1) @ text_TD.to(y_BNE).mT

        uniform = v.mean(dim=2, keepdim=True)
        contrast = self.scale * scores(once) - self.base_scale * scores(uniform)
        again = self._alike(contrast.softmax(dim=-1), self.sharpness_for(run))[:, None]  # one map for all heads
        return (again @ once + attention(run, again @ v) + again @ v) / 3

    def sharpness_for(self, run: Pass) -> float:
        """The sharpness in this tower."""
        return self.sharpness or SHARPNESS.get(run.batch.tower.depth, 3.0)

    def _alike(self, r_BNT: torch.Tensor, sharpness: float) -> torch.Tensor:
        log_r = torch.log(r_BNT + 1e-10)
        divergence = (r_BNT * log_r).sum(dim=-1, keepdim=True) - r_BNT @ log_r.mT  # KL(r_i || r_j)
        s = 1 / (1 + divergence.clamp(min=0))
        ordered, order = s.sort(dim=-1, descending=True, stable=True)
        kept = ordered.softmax(dim=-1).cumsum(dim=-1) <= self.share
        kept[..., 0] = True
        keep = torch.zeros_like(kept).scatter(-1, order, kept)
        return (s * torch.exp(sharpness * s)).masked_fill(~keep, -torch.inf).softmax(dim=-1)

    def __str__(self) -> str:
        return "a second pass draws patches with like scores together"
