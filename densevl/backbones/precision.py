"""Linear layers of the image tower at other precisions: `"int8"`, `"bfloat16"`, `"float16"`, `"float32-packed"`.

A model loaded at such a precision keeps only the lowered weights, which are made block by block while reading. A loaded
model that is brought to another precision is left untouched: each attention block is copied without its weights, the
copy's linear layers are replaced by ones that hold lowered weights, and the copy runs through the view that recipes
use. Norms, softmax, residual stream, patch embedding, read-out and the text side stay float32.

int8 is dynamic: each output channel of the weights has a fixed scale, and each token has one computed from the token
itself, so the result does not depend on the rest of the batch. Rounding to 8 bits costs about 1 % of a layer's output
(root mean square), 2 to 4 % in EVA's towers and where inputs have 7 bits. Shape letters: M tokens, K inputs, N outputs
of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from densevl import devices
from densevl.backbones.lowered.block import int8_mlp, run
from densevl.backbones.lowered.linears import BFloat16Linear, Float16Linear, Int8Linear
from densevl.backbones.lowered.packed import PackedLinear, packed_mlp
from densevl.errors import ModelError, OptionError, PrecisionError, RecipeError, one_of
from densevl.kernels import packed
from densevl.recipes.blocks import Block, as_trained
from densevl.recipes.tower import Grid, Tower

PRECISIONS = ("float32", "int8", "bfloat16", "float16", "float32-packed")
AUTO = "auto"
"""The fastest of them on this machine, see `lowered.probe`; float32 for models that have no other."""
WHOLE_BLOCKS = ("EvaBlockPostNorm",)
"""Blocks that no recipe takes apart, whose only matrix products are plain linear layers."""


LINEARS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], nn.Module]] = {
    "int8": Int8Linear,
    "bfloat16": BFloat16Linear,
    "float16": Float16Linear,
    "float32-packed": PackedLinear,
}
MLPS: dict[str, Callable[[nn.Module], nn.Module | None]] = {"int8": int8_mlp, "float32-packed": packed_mlp}
"""Precisions with a layer for a whole MLP, if it has only the parts they support."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float32-packed": 4}
ON_CPU = {"int8": "bfloat16", "float32-packed": "float32"}
"""Precisions for CPUs only, and the replacement elsewhere."""


class LoweredTower:
    """A tower whose blocks run with lowered linear layers; everything else is unchanged."""

    def __init__(self, tower: Tower, precision: str, name: str, device: str | None = None) -> None:
        """Lower the blocks of a tower.

        Args:
            device: lower the tower itself, one block after another, each once it was moved there; its weights are not
                kept. None leaves the tower as it is.

        Raises:
            ModelError: it has no blocks that can be lowered.
        """
        self._tower, self._name, self._precision, self.replaces = tower, name, precision, device is not None
        views = _views(tower, name)
        self._modules = []
        for view in views:
            self._modules.append(_lowered(view, precision, device))
            if self.replaces:
                devices.give_back()

    @property
    def trained(self) -> Tower:
        """The tower as it was trained.

        Raises:
            ModelError: it was not kept.
        """
        if self.replaces:
            raise ModelError(
                f"model '{self._name}' was loaded in {self._precision}, and its float32 weights, which this needs, "
                "were not kept: load it in float32"
            )
        return self._tower

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.trained if name == "module" else self._tower, name)

    def view(self, index: int, grid: Grid) -> Block:
        """The parts of block `index`, lowered; see `Tower.view`."""
        return self._tower.view(index, grid).over(self._modules[index])

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Run block `index` as trained, lowered; see `Tower.run`."""
        if type(self._modules[index]).__name__ in WHOLE_BLOCKS:
            found: torch.Tensor = self._modules[index](x_BND)
            return found
        view = self.view(index, grid)
        return run(view, x_BND) if self._precision == "int8" else as_trained(view, x_BND)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) of the trained size to image embeddings (B, D), lowered."""
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        x_BND = self.embed(pixels, getattr(self._tower, "rule", "size"))
        for index in range(self.depth):
            x_BND = self.run(index, x_BND, grid)
        found: torch.Tensor = self.pool(x_BND)
        return found


def lowerable(tower: Tower, name: str) -> Iterator[torch.Tensor]:
    """The weights of a tower that another precision lowers.

    Raises:
        ModelError: it has no blocks that can be lowered.
    """
    for view in _views(tower, name):
        module = view if isinstance(view, nn.Module) else view.module
        joint = None if view is module else view.joint()
        if joint is not None:
            yield joint
        yield from (m.weight for m in module.modules() if isinstance(m, nn.Linear) and m.weight is not joint)


def _views(tower: Tower, name: str) -> list[Any]:
    """The views of a tower's blocks, or the modules of blocks that run whole."""
    grid = tower.image_size[0] // tower.patch_size, tower.image_size[1] // tower.patch_size
    blocks: Any = getattr(tower, "_blocks", ())
    try:
        views = [
            blocks[index] if type(blocks[index]).__name__ in WHOLE_BLOCKS else tower.view(index, grid)
            for index in range(tower.depth)
        ]
    except RecipeError as error:
        raise PrecisionError(f"model '{name}' runs in float32 only: {error}") from error
    if not views:
        raise PrecisionError(f"model '{name}' runs in float32 only: its tower is {tower.kind}, without linear blocks")
    return views


def check(precision: str, device: torch.device) -> None:
    """Refuse a precision that does not exist, or not on this device.

    Raises:
        OptionError: there is no such precision.
        ModelError: it is not for this device; the message has the way out.
    """
    one_of(precision, (*PRECISIONS, AUTO), "precision", OptionError)
    if precision in ON_CPU and device.type != "cpu":
        other = ON_CPU[precision]
        raise ModelError(f"precision '{precision}' is for CPUs, the model is on '{device}'; take '{other}' there")
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_prepack")
    if precision == "int8" and not onednn:
        raise ModelError("this PyTorch has no 8-bit linear layers (oneDNN); take precision 'bfloat16' or 'float32'")
    if precision == "float32-packed" and packed.library() is None:
        raise ModelError("this PyTorch has neither MKL's nor oneDNN's packed weights; take precision 'float32'")


def _lowered(view: Any, precision: str, device: str | None) -> nn.Module:
    """A copy of the block that shares its tensors, with lowered linear layers instead of its own.

    Args:
        view: of the block, or a block that runs whole. device: lower the block itself there, without a copy.
    """
    make, make_mlp = LINEARS[precision], MLPS.get(precision, lambda _: None)
    whole = isinstance(view, nn.Module)
    module = view if whole else view.module
    if device is None:
        lowered = copy.deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})
    else:
        lowered = module.to(device).eval()  # a newly built module may be in training mode
    joint: Any = None if whole else view.joint()
    if joint is not None:
        lowered.lowered_joint = _Joint(joint, view.joint_bias(), make)
        if device is not None:
            _drop(lowered, joint)
    for parent in list(lowered.modules()):
        for name, child in list(parent.named_children()):
            if mlp := make_mlp(child):
                setattr(parent, name, mlp)
            elif isinstance(child, nn.Linear) and child.weight is not joint and child.weight.numel():
                bias = child.bias
                if whole and name == "qkv" and parent.q_bias is not None:  # timm adds it by hand
                    bias = torch.cat([parent.q_bias, parent.k_bias, parent.v_bias])  # type: ignore[assignment]
                    parent.q_bias = None
                setattr(parent, name, make(child.weight, bias))
    return lowered


def _drop(module: nn.Module, weight: torch.Tensor) -> None:
    """Empty the weights of a joint projection; its layer stays, because it identifies the kind of block."""
    for parent in module.modules():
        for name, own in list(parent.named_parameters(recurse=False)):
            if own is weight:
                setattr(parent, name, nn.Parameter(weight.new_empty(0), requires_grad=False))


class _Joint(nn.Module):
    """The projections of q, k and v as separate layers, so that unneeded ones are not computed."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        make: Callable[[torch.Tensor, torch.Tensor | None], nn.Module],
    ) -> None:
        super().__init__()
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.parts: Any = nn.ModuleDict(dict(zip("qkv", map(make, weight.chunk(3), biases), strict=True)))

    def forward(self, u: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        lowered = self.parts["q"].lower(u)  # once for all three
        return {name: self.parts[name].multiply(lowered) for name in which}
