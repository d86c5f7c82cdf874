"""What a user changes in a layer counts wherever blocks are taken apart: hooks, another forward, dropout, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from conftest import random_clip, wrap
from densevl.kernels import linear as kernel
from densevl.kernels.linear import through
from densevl.recipes.layers import mlp_of, through_mlp


@contextmanager
def _another_forward(module: nn.Module) -> Iterator[None]:
    """As accelerate does."""
    own = module.forward
    module.forward = lambda *given, **named: 2 * own(*given, **named)  # type: ignore[method-assign]
    yield
    del module.forward


@contextmanager
def _hook(module: nn.Module) -> Iterator[None]:
    with module.register_forward_hook(lambda module, given, result: 2 * result):
        yield


@contextmanager
def _hook_before(module: nn.Module) -> Iterator[None]:
    with module.register_forward_pre_hook(lambda module, given: (2 * given[0], *given[1:])):
        yield


@contextmanager
def _hook_of_all(module: nn.Module) -> Iterator[None]:
    with register_module_forward_hook(lambda own, given, result: 2 * result if own is module else None):
        yield


@contextmanager
def _hook_before_all(module: nn.Module) -> Iterator[None]:
    with register_module_forward_pre_hook(lambda own, given: (2 * given[0], *given[1:]) if own is module else None):
        yield


LEARNED = nn.Parameter(torch.ones(()))
CHANGES = (_another_forward, _hook, _hook_before, _hook_of_all, _hook_before_all)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr(kernel, "LEAST", 0)


def _mlp(activation: nn.Module, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 96), activation, *more, nn.Linear(96, 24)).eval().requires_grad_(False)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["", "0", "1", "2", "3"])
def test_a_changed_part_of_an_mlp_counts(part, change) -> None:
    module, x = _mlp(nn.GELU(), nn.Dropout(0.5)), torch.randn(3, 24)
    before = through_mlp(module, x)
    with change(module.get_submodule(part)):
        found = through_mlp(module, x)
        assert torch.equal(found, module(x))
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_counts(change) -> None:
    layer, x = nn.Linear(24, 24).eval().requires_grad_(False), torch.randn(3, 24)
    with change(layer):
        assert torch.equal(through(layer, x), layer(x))


def test_dropout_that_is_switched_on_alone_drops() -> None:
    module = _mlp(nn.GELU(), nn.Dropout(1.0))
    module[2].train()
    assert torch.equal(through_mlp(module, torch.randn(3, 24)), module[3].bias.expand(3, -1))


class _Quick(nn.Module):
    def __init__(self, alpha: object = 1.702) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid((self.alpha[0] if isinstance(self.alpha, list) else self.alpha) * x)


@pytest.mark.parametrize(
    ("alpha", "kind"),
    [
        (1.702, "quick"),
        (1, "silu"),
        (5.0, None),
        ([1.702], "quick"),
        ([5.0], None),
        (nn.Parameter(torch.ones(())), None),
    ],
    ids=str,
)
def test_an_activation_is_what_it_computes(alpha, kind) -> None:
    module, x = _mlp(_Quick(alpha)), torch.randn(3, 24)
    assert (mlp_of(module) or (None, None))[1] == kind
    torch.testing.assert_close(through_mlp(module, x), module(x))
    if not isinstance(alpha, nn.Parameter):
        module[1].alpha = 3.0
        torch.testing.assert_close(through_mlp(module, x), module(x))


def test_a_class_of_the_same_name_is_not_timms() -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2, self.norm = nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 24), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.fc2(self.act(self.fc1(x)))

    module, x = Mlp().eval(), torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(through_mlp(module, x), module(x))


@pytest.mark.parametrize("part", ["", "ln_1", "mlp", "mlp.gelu", "mlp.c_fc"])
def test_a_hook_in_a_tower_counts(part) -> None:
    backbone, pixels = wrap(random_clip()), torch.randn(2, 3, 32, 32)
    with _hook(backbone.model.visual.transformer.resblocks[1].get_submodule(part)):
        found, want = backbone.encode_dense(pixels, "vanilla").cls, backbone.encode_image(pixels)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, backbone.encode_image(pixels), atol=1e-3)


def _sam_encoder() -> nn.Module:
    image_encoder = pytest.importorskip("segment_anything.modeling.image_encoder", reason="SAM needs the extra 'sam'")
    torch.manual_seed(0)
    return image_encoder.ImageEncoderViT(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, out_chans=4, use_rel_pos=True, window_size=3,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["", "blocks.0", "blocks.0.mlp", "blocks.0.attn", "blocks.1.mlp.act", "neck"])
def test_a_changed_part_of_SAMs_encoder_counts(part, change: Callable) -> None:
    encoder, pixels = _sam_encoder(), torch.randn(1, 3, 32, 32)
    from densevl.proposals.sam.encoder import run_encoder

    before = run_encoder(encoder, pixels)
    with change(encoder.get_submodule(part)):
        found = run_encoder(encoder, pixels)
        assert torch.equal(found, encoder(pixels))
    assert part == "blocks.0" or not torch.allclose(found, before)


@pytest.mark.parametrize("part", ["layers.0.cross_attn_token_to_image", "layers.1.cross_attn_image_to_token.k_proj"])
def test_a_hook_in_SAMs_decoder_counts_whenever_it_came(part) -> None:
    transformer = pytest.importorskip("segment_anything.modeling.transformer", reason="SAM needs the extra 'sam'")
    mask_decoder = pytest.importorskip("segment_anything.modeling.mask_decoder")
    from densevl.proposals.sam.decoder import FoldedDecoder, decoder_of

    torch.manual_seed(0)
    inner = transformer.TwoWayTransformer(2, 32, 4, 48)
    decoder = mask_decoder.MaskDecoder(transformer_dim=32, transformer=inner).eval().requires_grad_(False)
    embedding, places, tokens = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(2, 7, 32)
    folded, seen = decoder_of(decoder, embedding, places), []
    assert isinstance(folded, FoldedDecoder)
    before = folded.transform(tokens)
    with inner.get_submodule(part).register_forward_hook(lambda module, given, result: seen.append(1) or 2 * result):
        found = folded.transform(tokens)
        later = decoder_of(decoder, embedding, places).transform(tokens)
    assert len(seen) == 2
    assert torch.equal(found[0], later[0])
    assert not torch.allclose(found[1], before[1])
