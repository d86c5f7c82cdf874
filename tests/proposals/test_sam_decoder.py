"""SAM's decoder folded gives what the package's own gives, and what is not the package's runs as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import close

modeling = pytest.importorskip("segment_anything.modeling", reason="SAM needs the extra 'sam'")

from densevl.kernels import linear as kernel
from densevl.proposals.sam import decoder as sam_decoder
from densevl.proposals.sam.automatic import SamProposer
from densevl.proposals.sam.decoder import Decoder, FoldedDecoder, decoder_of
from densevl.proposals.sam.image import SamImage
from densevl.proposals.sam.mini_sam import WEIGHTS, load_mini_sam
from densevl.shipped import is_shipped

POINT, PAIR, BOX, BOTH, MANY = range(5)
PROMPTS = {"a point": POINT, "two points": PAIR, "a box": BOX, "a box and a point": BOTH, "many points": MANY}


def model(grid: tuple[int, int] = (4, 6), channels: int = 64, heads: int = 4, depth: int = 2, rate: int = 2) -> Any:
    """Every parameter has an effect, biases and norms too."""
    prompts = modeling.PromptEncoder(channels, grid, (8 * grid[0], 8 * grid[1]), 8)
    transformer = modeling.TwoWayTransformer(depth, channels, heads, 48, attention_downsample_rate=rate)
    decoder = modeling.MaskDecoder(transformer_dim=channels, transformer=transformer, iou_head_hidden_dim=32)
    for module in (prompts, decoder):
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.data = torch.randn_like(parameter) * scale + (0 if parameter.ndim > 1 else 0.5)
    sam = nn.Module()
    sam.prompt_encoder, sam.mask_decoder = prompts, decoder
    return sam.eval().requires_grad_(False)


def tokens_of(sam: Any, kind: int, count: int) -> torch.Tensor:
    """Tokens of prompts as the package's prompt encoder makes them."""
    points = torch.rand(count, {POINT: 1, PAIR: 2, BOTH: 1, MANY: 40}.get(kind, 1), 2) * 30, None
    points = points[0], torch.randint(0, 2, points[0].shape[:2])
    boxes = torch.rand(count, 4) * 30
    return sam.prompt_encoder(None if kind == BOX else points, boxes if kind in (BOX, BOTH) else None, None)[0]


def both(sam: Any, sparse: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Logits and qualities of all masks: by `FoldedDecoder`, and by the package's `predict_masks`."""
    decoder, codes = sam.mask_decoder, sam.prompt_encoder.get_dense_pe()
    embedding, unprompted = torch.randn_like(codes), torch.randn(1, codes.shape[1], 1, 1)
    theirs = decoder.predict_masks(embedding, codes, sparse, unprompted.expand(len(sparse), -1, *codes.shape[-2:]))
    own = decoder_of(decoder, embedding + unprompted, codes)
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens, cells = own.transform(torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1))
    filters = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    return (own.masks(cells, filters), decoder.iou_prediction_head(tokens[:, 0])), theirs


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("kind", PROMPTS.values(), ids=PROMPTS)
def test_all_prompts_give_the_packages_logits_and_qualities(kind: int, count: int) -> None:
    sam = model()
    for ours, theirs in zip(*both(sam, tokens_of(sam, kind, count)), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize(
    "sizes",
    [
        {"depth": 1},
        {"depth": 3},
        {"heads": 1},
        {"heads": 8},
        {"rate": 1},
        {"grid": (7, 3)},
        {"channels": 96, "heads": 3},
    ],
    ids=str,
)
def test_transformers_of_other_sizes_do_too(sizes) -> None:
    sam = model(**sizes)
    for ours, theirs in zip(*both(sam, tokens_of(sam, POINT, 3)), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("cells", [1, 5, 24, 50], ids=lambda cells: f"{cells}-cells")
def test_masks_are_the_same_however_many_pixels_are_made_at_once(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam_decoder.IN_CACHE, "cpu", cells * 2 * 64 * 4)
    sam = model()
    for ours, theirs in zip(*both(sam, tokens_of(sam, POINT, 5)), strict=True):
        close(ours, theirs)


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no such operator")
def test_the_other_library_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "LEAST", 1)
    monkeypatch.setattr(kernel, "onednn_is_faster", lambda: True)
    used, true = [], kernel.onednn_linear
    monkeypatch.setattr(kernel, "onednn_linear", lambda *args: used.append(1) or true(*args))
    sam = model()
    for ours, theirs in zip(*both(sam, tokens_of(sam, POINT, 3)), strict=True):
        close(ours, theirs)
    assert len(used) > 6


@pytest.mark.parametrize(("kind", "folded"), [(POINT, True), (BOX, True), (MANY, False)])
def test_folding_is_used_where_it_multiplies_less(kind: int, folded: bool, monkeypatch) -> None:
    sam = model()
    transformer, sparse, codes = (
        sam.mask_decoder.transformer,
        tokens_of(sam, kind, 2),
        sam.prompt_encoder.get_dense_pe(),
    )
    own, called = decoder_of(sam.mask_decoder, codes, codes), []
    whole = type(transformer).forward
    monkeypatch.setattr(type(transformer), "forward", lambda *given: called.append(1) or whole(*given))
    own.transform(sparse)
    assert bool(called) is not folded


class Lora(nn.Linear):
    """An adapter as LoRA has it: the layer's own weight is not all that it applies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.sum(dim=-1, keepdim=True)


def with_lora(decoder: Any) -> Any:
    attn = decoder.transformer.final_attn_token_to_image
    attn.q_proj = Lora(attn.q_proj.in_features, attn.q_proj.out_features)
    return decoder


class Other(modeling.MaskDecoder):
    """A decoder of one's own."""


def own_class(decoder: Any) -> Any:
    decoder.__class__ = Other
    return decoder


def quantised(decoder: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(decoder, {nn.Linear})


@pytest.mark.parametrize("change", [with_lora, own_class, quantised])
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_what_is_not_the_packages_runs_as_it_is(change) -> None:
    sam = model()
    sam.mask_decoder = change(sam.mask_decoder)
    codes = sam.prompt_encoder.get_dense_pe()
    assert type(decoder_of(sam.mask_decoder, codes, codes)) is Decoder
    for ours, theirs in zip(*both(sam, tokens_of(sam, POINT, 2)), strict=True):
        close(ours, theirs)


@pytest.mark.skipif(not is_shipped(WEIGHTS), reason="this checkout holds no mini-sam")
def test_mini_sam_is_folded_and_takes_any_number_of_prompts_at_once() -> None:
    image = SamImage.encode(load_mini_sam(), np.full((30, 40, 3), 90, np.uint8))
    assert type(image._decoder) is FoldedDecoder
    assert image.at_once > 8
    points = [(5, 5), (20, 20), (35, 9)]
    one, all_three = (SamProposer(image.sam, points_per_batch=each).prompt(image, points=points) for each in (1, None))
    close(one.quality, all_three.quality)
    assert (one.masks() ^ all_three.masks()).mean() < 1e-3


@pytest.mark.parametrize(("kind", "held", "at_once"), [("cpu", 2**23, 2), ("meta", 2**28, 64)])
def test_as_many_prompts_a_call_as_the_device_holds_well(kind: str, held: int, at_once: int) -> None:
    embedding = torch.empty(1, 256, 64, 64, device=kind)
    assert Decoder(None, embedding, embedding).at_once == held // embedding.nbytes == at_once


def test_a_callers_mixed_precision_is_left_to_the_package() -> None:
    sam = model()
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(*both(sam, tokens_of(sam, POINT, 2)), strict=True):
            close(ours, theirs, tolerance=0.05, why="bfloat16 through three layers")
