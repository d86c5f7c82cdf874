"""Small trained parts on a frozen CLIP, after AdaptCLIP (Gao et al., arXiv 2505.09926): three adapters.

The visual adapter shifts image and patch features towards the static prompts; the textual one learns prompts for the
frozen features; the query adapter compares a patch with its nearest normal patch. All three are trained on one set of
labelled images and used on others. The widths and the read-out of the query adapter are densevl's own. Shape letters:
B images, E joint space, D width, W text width, h/w grid, L layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from densevl import fitted
from densevl.anomaly.evidence import margin
from densevl.anomaly.harmonic import mix_probabilities
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.errors import ModelError, WeightsError
from densevl.files import atomic_write, shown
from densevl.weights import below, build_strictly, read_checkpoint

FORMAT = "densevl-adapters-1"
REDUCTION = 4
HIDDEN = 64
ITSELF, AGAIN = "its own header", "train and save the adapters again"


class VisualAdapter(nn.Module):
    """Residual bottlenecks on image features and on patch features, (..., E) each; they start as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.patch = (_bottleneck(width) for _ in range(2))

    def forward(self, image_BE: torch.Tensor, patch_BhwE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image, patch = F.normalize(image_BE, dim=-1), F.normalize(patch_BhwE, dim=-1)
        return image + self.image(image), patch + self.patch(patch)


class QueryAdapter(nn.Module):
    """Logits of places and of the image from patches and their nearest normal patches, per layer, averaged."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.places = nn.ModuleList(_head(width) for width in widths)
        self.images = nn.ModuleList(_head(2 * width) for width in widths)

    def forward(
        self, queries: Sequence[torch.Tensor], normals: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features (B, h, w, D) per layer, of the image and nearest normal, to logits (B, h, w) and (B,)."""
        maps, images = [], []
        for layer, (query, normal) in enumerate(zip(queries, normals, strict=True)):
            # The patch itself stays in: the difference alone does not say what is normal here.
            x = query + (query - normal).abs()
            x = self.norms[layer](x.flatten(0, 2)).view(x.shape)
            maps.append(self.places[layer](x)[..., 0])
            pooled = torch.cat([x.mean(dim=(1, 2)), x.amax(dim=(1, 2))], dim=-1)
            images.append(self.images[layer](pooled)[..., 0])
        return torch.stack(maps).mean(dim=0), torch.stack(images).mean(dim=0)


def _bottleneck(width: int) -> nn.Sequential:
    narrow = nn.Linear(width, max(1, width // REDUCTION))
    wide = nn.Linear(narrow.out_features, width)
    nn.init.zeros_(wide.weight)
    nn.init.zeros_(wide.bias)
    return nn.Sequential(narrow, nn.ReLU(), wide)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


@dataclass(eq=False)
class Adapters:
    """Trained adapters of one backbone.

    Attributes:
        static: (2, E) unit rows of the prompts that the visual adapter was trained with.
        learned: (2, E) unit rows of the learned prompts.
        layers: the blocks that the query adapter reads. temperature: divides cosines.
        model, fingerprint: the backbone's name and the hash of its weights.
    """

    visual: VisualAdapter
    query: QueryAdapter
    static: torch.Tensor
    learned: torch.Tensor
    layers: tuple[int, ...]
    temperature: float
    model: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ModelError(f"temperature of adapters is {self.temperature}: it must be above 0 and finite")

    def text(self, image_BE: torch.Tensor, patch_BhwE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, h, w) and (B,) from features in the joint space: the mean of both adapters' probabilities."""
        bent_image, bent_patch = self.visual(image_BE, patch_BhwE)
        maps = [self.margin(bent_patch, self.static), self.margin(patch_BhwE, self.learned)]
        images = [self.margin(bent_image, self.static), self.margin(image_BE, self.learned)]
        return mix_probabilities(maps), mix_probabilities(images)

    def margin(self, features: torch.Tensor, prototypes_2E: torch.Tensor) -> torch.Tensor:
        """Logit of anomalous against normal: (...) for (..., E)."""
        return margin(features, prototypes_2E, self.temperature)

    def compare(
        self, levels: Mapping[str, torch.Tensor], memories: Mapping[str, NearestMemory], near: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The query adapter's logits (B, h, w) and (B,) against memories of its layers; see `NearestMemory.look_up`."""
        queries = [F.normalize(levels[f"layer{layer}"].float(), dim=-1) for layer in self.layers]
        normals = [
            nearest_rows(query, memories[f"layer{layer}"], near)
            for query, layer in zip(queries, self.layers, strict=True)
        ]
        return self.query(queries, normals)

    def to(self, device: torch.device) -> Adapters:
        """The same adapters on a device, in evaluation mode."""
        self.visual.to(device).eval()
        self.query.to(device).eval()
        self.static, self.learned = self.static.to(device), self.learned.to(device)
        return self

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file whose header names the backbone.

        Raises:
            ModelError: the ending is another.
            OutputError: the disk refuses.
        """
        if Path(path).suffix != ".safetensors":
            raise ModelError(f"adapters go into a .safetensors file, not {Path(path).name}")
        tensors = {f"visual.{key}": value for key, value in self.visual.state_dict().items()}
        tensors |= {f"query.{key}": value for key, value in self.query.state_dict().items()}
        tensors |= {"static": self.static, "learned": self.learned}
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        facts = {"model": self.model, "fingerprint": self.fingerprint}
        facts |= {"layers": json.dumps(self.layers), "temperature": repr(self.temperature)}
        return atomic_write(path, fitted.to_bytes(tensors, {"format": FORMAT, **facts}))


def load_adapters(path: str | Path, model: str, fingerprint: str) -> Adapters:
    """Read adapters for a backbone.

    Raises:
        WeightsError: the file is missing or damaged, or belongs to a backbone with other weights.
    """
    path = Path(path)
    file = read_checkpoint(path)
    tensors, header = file.tensors, file.header
    if header.get("format") != FORMAT:
        raise WeightsError(f"{path} holds no adapters of this version; train and save them again")
    if header.get("fingerprint") != fingerprint:
        raise WeightsError(
            f"adapters {shown(path)} were trained on model '{header.get('model')}', and '{model}' has other weights: "
            "use that model, or train them again"
        )
    try:
        layers, temperature = tuple(json.loads(header["layers"])), float(header["temperature"])
        static, learned = tensors["static"], tensors["learned"]
        widths = [len(tensors[f"query.norms.{index}.weight"]) for index in range(len(layers))]
        visual = build_strictly(lambda: VisualAdapter(static.shape[1]), below(tensors, "visual."), path, ITSELF, AGAIN)
        query = build_strictly(lambda: QueryAdapter(widths), below(tensors, "query."), path, ITSELF, AGAIN)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"adapters {shown(path)} are damaged: {reason}") from error
    found = Adapters(visual, query, static, learned, layers, temperature, model, fingerprint)
    return found.to(torch.device("cpu"))


def nearest_rows(query_BhwD: torch.Tensor, memory: NearestMemory, near: int | None = None) -> torch.Tensor:
    """The nearest normal row of each place, in the query's shape."""
    return memory.rows[memory.look_up(query_BhwD, near)[1]]
