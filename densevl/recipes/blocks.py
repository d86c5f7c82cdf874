"""Views of transformer blocks, with the same five parts for every library.

A view holds no weights. Supported are open_clip's residual attention blocks, with torch's MultiheadAttention or
open_clip's own `Attention`, and timm's pre-norm `Block` and `EvaBlock`, with or without rotary positions. Other blocks
are refused by name.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import nn

from densevl.errors import RecipeError
from densevl.kernels.attention import attend
from densevl.kernels.common import captured
from densevl.kernels.linear import linear, through
from densevl.recipes.layers import pieces, through_mlp


class Block(Protocol):
    """The interface of a block for recipes. x and u are (B, N, D); projections are (B, A, N, d).

    Attributes:
        module: the library's own block, or a copy with lowered linear layers (`backbones.precision`), which then has
            `lowered_joint`, the joint projection of q, k and v, if there is one.
        heads: number of heads.
    """

    module: Any
    heads: int

    def over(self, module: Any) -> Block:
        """The same view of a copy of the block."""

    def joint(self) -> torch.Tensor | None:
        """Weight (3D, D) of the joint projection of q, k and v; None if each has its own layer."""

    def joint_bias(self) -> torch.Tensor | None:
        """The bias (3D,) of that projection."""

    def norm(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Layer norm before the attention."""

    def project(self, u_BND: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        """The projections named in `which` (a subset of "qkv"), split into heads; others are not computed.

        They are the inputs of the block's own attention: q and k after their norms and rotary positions, if any.
        """

    def projected(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        """Join heads and apply the output projection, before the layer scale: (B, N, D); `add` is added."""

    def merge(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        """Join heads, apply output projection and layer scale: the attention branch (B, N, D); `add` is added."""

    def unrotated(self) -> Block:
        """The block for tokens without a place, such as copies of CLS: without rotary positions."""

    def norm_ffn(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Layer norm before the MLP."""

    def ffn(self, x_BND: torch.Tensor, onto_BND: torch.Tensor | None = None) -> torch.Tensor:
        """The MLP branch with its layer norm and layer scale; it is added to `onto`, contiguous, in its place."""


def as_trained(block: Block, x_BND: torch.Tensor) -> torch.Tensor:
    """Run a block as trained, through its view: (B, N, D); on a CPU faster than torch's MultiheadAttention."""
    qkv = block.project(block.norm(x_BND), "qkv")
    x_BND = block.merge(attend(qkv["q"], qkv["k"], qkv["v"]), x_BND)
    return with_ffn(block, x_BND)


def with_ffn(block: Block, x_BND: torch.Tensor) -> torch.Tensor:
    """Add the MLP branch to tokens, a few at a time; without gradients, `x_BND` is overwritten."""
    if torch.is_grad_enabled() or captured():
        return x_BND + block.ffn(x_BND)
    x_BND = x_BND.contiguous()
    for part in pieces(x_BND):
        block.ffn(part, part)
    return x_BND


class OpenClipBlock:
    """View of an open_clip residual attention block (batch first or not, plain or custom attention)."""

    def __init__(self, block: Any) -> None:
        self.module = self._block = block
        self._attn = block.attn
        self.heads: int = self._attn.num_heads

    def over(self, module: Any) -> Self:
        return type(self)(module)

    def joint(self) -> torch.Tensor:
        return self._attn.in_proj_weight

    def joint_bias(self) -> torch.Tensor | None:
        return self._attn.in_proj_bias

    def norm(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.ln_1(x_BND)

    def project(self, u_BND: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        joint = _joint_projection(u_BND, self, which)
        result = {name: part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for name, part in joint.items()}
        return _with_norms(result, getattr(self._attn, "ln_q", None), getattr(self._attn, "ln_k", None))

    def projected(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        head_scale = getattr(self._attn, "head_scale", None)
        if head_scale is not None:
            heads_BANd = heads_BANd * head_scale
        y_BND = heads_BANd.transpose(1, 2).flatten(2)
        return through(self._attn.out_proj, getattr(self._attn, "ln_inner", nn.Identity())(y_BND), add_BND)

    def merge(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        after = (getattr(self._block, "ln_attn", None), self._block.ls_1)
        if add_BND is not None and all(part is None or isinstance(part, nn.Identity) for part in after):
            return self.projected(heads_BANd, add_BND)
        y_BND = self._block.ls_1(getattr(self._block, "ln_attn", nn.Identity())(self.projected(heads_BANd)))
        return y_BND if add_BND is None else y_BND.add_(add_BND)

    def unrotated(self) -> Block:
        return self

    def norm_ffn(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.ln_2(x_BND)

    def ffn(self, x_BND: torch.Tensor, onto_BND: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(self._block.ls_2, nn.Identity):
            return through_mlp(self._block.mlp, self._block.ln_2(x_BND), onto_BND)
        y_BND = self._block.ls_2(through_mlp(self._block.mlp, self._block.ln_2(x_BND)))
        return y_BND if onto_BND is None else onto_BND.add_(y_BND)


class TimmBlock:
    """View of timm's `Block` or `EvaBlock`; `rope` is the block's own input, (h*w, 2d) or (A, h*w, 2d).

    The last h*w tokens are the patches; any number may precede them.
    """

    def __init__(self, block: Any, rope: torch.Tensor | None = None) -> None:
        self.module = self._block = block
        self._attn = block.attn
        self._rope = rope
        self.heads: int = self._attn.num_heads

    def over(self, module: Any) -> Self:
        return type(self)(module, self._rope)

    def joint(self) -> torch.Tensor | None:
        return None if self._attn.qkv is None else self._attn.qkv.weight

    def joint_bias(self) -> torch.Tensor | None:
        attn = self._attn
        if getattr(attn, "q_bias", None) is not None:
            return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        return attn.qkv.bias

    def norm(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.norm1(x_BND)

    def project(self, u_BND: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        attn, result = self._attn, {}
        if attn.qkv is not None:
            result = _joint_projection(u_BND, self, which)
        else:
            result = {name: through(getattr(attn, f"{name}_proj"), u_BND) for name in which}
        width = attn.head_dim
        result = {name: part.unflatten(-1, (-1, width)).transpose(1, 2) for name, part in result.items()}
        result = _with_norms(result, attn.q_norm, attn.k_norm)
        if self._rope is not None:
            result |= {name: self._rotate(result[name], self._rope) for name in "qk" if name in result}
        for name, part in result.items():  # grouped queries: several heads of q share one of k and v
            if part.shape[1] != self.heads:
                result[name] = part.repeat_interleave(self.heads // part.shape[1], dim=1)
        return result

    def projected(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        y_BND = heads_BANd.transpose(1, 2).flatten(2)
        return through(self._attn.proj, getattr(self._attn, "norm", nn.Identity())(y_BND), add_BND)

    def merge(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        if add_BND is not None and not self._is_scaled("1"):
            return self.projected(heads_BANd, add_BND)
        y_BND = self._scaled(self.projected(heads_BANd), "1")
        return y_BND if add_BND is None else y_BND.add_(add_BND)

    def unrotated(self) -> Block:
        return TimmBlock(self._block)

    def norm_ffn(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.norm2(x_BND)

    def ffn(self, x_BND: torch.Tensor, onto_BND: torch.Tensor | None = None) -> torch.Tensor:
        if not self._is_scaled("2"):
            return through_mlp(self._block.mlp, self._block.norm2(x_BND), onto_BND)
        y_BND = self._scaled(through_mlp(self._block.mlp, self._block.norm2(x_BND)), "2")
        return y_BND if onto_BND is None else onto_BND.add_(y_BND)

    def _rotate(self, heads_BANd: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        from timm.layers import apply_rot_embed_cat

        half = {"half": True} if getattr(self._attn, "rotate_half", False) else {}  # older timm has no such layout
        count = heads_BANd.shape[2] - rope.shape[-2]  # tokens before the patches have no position to rotate by
        leading, patches = heads_BANd[:, :, :count], heads_BANd[:, :, count:]
        return torch.cat([leading, apply_rot_embed_cat(patches, rope, **half).to(leading.dtype)], dim=2)

    def _is_scaled(self, branch: str) -> bool:
        own = getattr(self._block, f"gamma_{branch}", None), getattr(self._block, f"ls{branch}", None)
        return any(part is not None and not isinstance(part, nn.Identity) for part in own)

    def _scaled(self, y_BND: torch.Tensor, branch: str) -> torch.Tensor:
        gamma = getattr(self._block, f"gamma_{branch}", None)
        if gamma is not None:
            return gamma * y_BND
        return getattr(self._block, f"ls{branch}", nn.Identity())(y_BND)


def _joint_projection(u_BND: torch.Tensor, block: OpenClipBlock | TimmBlock, which: str) -> dict[str, torch.Tensor]:
    """The wanted thirds of a joint q, k, v projection; adjacent ones share one matrix product."""
    lowered = getattr(block.module, "lowered_joint", None)
    if lowered is not None:
        return lowered(u_BND, which)
    weight: Any = block.joint()
    bias = block.joint_bias()
    width = weight.shape[0] // 3
    result: dict[str, torch.Tensor] = {}
    for run in {"qkv": ["qkv"], "qk": ["qk"], "kv": ["kv"], "qv": ["q", "v"]}.get(which, list(which)):
        rows = slice("qkv".index(run[0]) * width, ("qkv".index(run[-1]) + 1) * width)
        joint = linear(u_BND, weight[rows], None if bias is None else bias[rows])
        result.update(zip(run, joint.split(width, dim=-1), strict=True))
    return result


def _with_norms(
    heads: dict[str, torch.Tensor], q_norm: nn.Module | None, k_norm: nn.Module | None
) -> dict[str, torch.Tensor]:
    """Normalise q and k per head if the block does."""
    norms = {"q": q_norm, "k": k_norm}
    return {name: part if norms.get(name) is None else norms[name](part) for name, part in heads.items()}  # type: ignore[misc]


def view(block: nn.Module, rope: torch.Tensor | None = None) -> Block:
    """Return the view of a block.

    Args:
        block: a block of open_clip or timm.
        rope: rotary positions of the patches in timm's form, or None.

    Raises:
        RecipeError: densevl cannot take this kind of block apart.
    """
    attn = getattr(block, "attn", None)
    kind, attention = type(block).__name__, type(attn).__name__
    if getattr(attn, "in_proj_weight", None) is not None and hasattr(block, "ln_1"):
        if getattr(attn, "logit_scale", None) is None:
            return OpenClipBlock(block)
    elif (
        kind in ("Block", "EvaBlock")
        and attention in ("Attention", "AttentionRope", "EvaAttention")
        and getattr(attn, "gate", None) is None
    ):
        return TimmBlock(block, rope)
    raise RecipeError(f"a block of type {kind} with {attention} has no plain q, k, v to rewire; use recipe 'vanilla'")
