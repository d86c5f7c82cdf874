"""A distillation run: one update, and a checkpoint from which it resumes identically.

Student: dense features by a recipe, averaged over boxes with RoIAlign. Teacher: the embedding of the same box, cut out.
Loss: one minus their cosine. Shape letters: B pictures, R regions, E joint space, h/w patch grid.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch.nn import functional as F
from torchvision.ops import roi_align

from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.proxies import load_proxy
from densevl.errors import DensevlError, OutputError, RecipeError, one_of
from densevl.fewshot.heads.prolip import AVERAGES, beta_density
from densevl.files import atomic_write
from densevl.recipes import Hints, get
from densevl.recipes.run import finish, start
from densevl.regions.operators.crop import input_side
from densevl.regions.operators.dense import has_features
from densevl.weights import below, read_checkpoint
from tools.arguments import still_finite
from tools.clipself.context import SOURCES, context_loss, projections, taught
from tools.clipself.models import image_tower, pack
from tools.clipself.pictures import Batch, Pictures

CHECKPOINT, STUDENT = "checkpoint.safetensors", "student.safetensors"
VISUAL, OPTIMISER, MEAN = "visual.", "optimiser.", "mean."
WARM_UP = 0.05


@dataclass(frozen=True)
class Plan:
    """Settings of a run besides model, pictures and budget.

    Attributes:
        recipe: how the student's dense features are made; "maskclip", whose last block attends to nothing, is that
            of the paper, "vanilla" trains the plain tokens of the last layer.
        batch: pictures per step. regions: maximum per picture.
        grid: maximum number of rows and columns of a picture; 0 is six as in the paper, or fewer on a small grid of
            patches, so that a cell is at least four patches wide.
        side: of the student's input; 0 is the model's own.
        blocks: number of last blocks to train, with the rest frozen; 0 trains the whole image tower.
        context: the model that also teaches the similarity of patches (DeCLIP), as for `load_proxy`; "" is none.
        context_weight: of that loss. context_source: the projections of the last block that learn it, one of `SOURCES`.
        masks: name of a proposer whose masks teach in place of crops (PixelCLIP); "" is none. clusters: of them.
        rate: peak learning rate. decay: of weights. seed: everything random follows from it.
        average: "beta" exports the mean of the weights over training, weighted by the density of Beta(1/2, 1/2), which
            is highest at the start and the end (CLIPood, ICML 2023); "none" exports the last weights.
    """

    recipe: str = "maskclip"
    batch: int = 16
    regions: int = 6
    grid: int = 0
    side: int = 0
    blocks: int = 0
    context: str = ""
    context_weight: float = 0.1
    context_source: str = "q"
    masks: str = ""
    clusters: int = 64
    rate: float = 1e-5
    decay: float = 0.1
    seed: int = 0
    average: str = "none"


class Run:
    """A teacher, its student, and their progress.

    Attributes:
        parts: contents of a checkpoint, by the prefix of their names.
        teacher: the model as given, never changed. student: its copy, whose image tower is trained.
        mean: the image tower with the mean of the weights so far; None without. weight: total weight of the mean.
        step: number of updates. seconds: their time.
    """

    def __init__(
        self, teacher: OpenClipBackbone, files: Sequence[Path], plan: Plan, out: Path, *, source: Path | None = None
    ) -> None:
        """Prepare a new run; see `resume`.

        Args:
            teacher: any model of open_clip. files: unlabelled pictures. out: folder of checkpoint and student.
            source: the file that the teacher was loaded from, if it is not its published one.

        Raises:
            RecipeError: If there is no such recipe, or it does not fit. DensevlError: If a setting is out of range.
        """
        self.teacher, self.out, self.source = teacher, out, source
        self.recipe = get(plan.recipe)
        if not has_features(self.recipe) or self.recipe.stitch is not None:
            raise RecipeError(f"recipe '{plan.recipe}' makes no map of features to train; take maskclip or vanilla")
        patch, crop_side = teacher.patch_size, input_side(teacher)
        side = plan.side or crop_side
        grid = plan.grid or max(1, min(6, side // patch // 4))
        if side % patch or min(plan.batch, plan.regions, grid, side) < 1 or plan.rate <= 0:
            raise DensevlError(
                f"side {side}, batch {plan.batch}, regions {plan.regions}, grid {grid}, rate {plan.rate:g}: "
                f"all are positive, and side is a multiple of {patch}, the model's patch"
            )
        one_of(plan.context_source, SOURCES, "context_source", DensevlError)
        if not plan.context_weight > 0:
            raise DensevlError(f"context_weight is {plan.context_weight:g}; it is above 0, or leave context out")
        self.context = load_proxy(plan.context, device=str(teacher.device)) if plan.context else None
        one_of(plan.average, AVERAGES, "average", DensevlError)
        self.plan = plan
        self.student = copy.deepcopy(teacher)
        self.tower = image_tower(self.student)
        self.parts: dict[str, torch.nn.Module] = {VISUAL: self.tower}
        self.mean = copy.deepcopy(self.tower) if plan.average == "beta" else None
        self.weight = 0.0
        if self.mean is not None:
            self.parts[MEAN] = self.mean
        groups = self._groups()
        for group in groups:
            group["params"] = [parameter.requires_grad_(True) for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.rate, weight_decay=plan.decay)
        self.pictures = Pictures(
            files,
            teacher.normalize,
            side=side,
            crop_side=crop_side,
            batch=plan.batch,
            regions=plan.regions,
            grid=grid,
            seed=plan.seed,
        )
        self.step, self.seconds = 0, 0.0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters, with their shares of the learning rate."""
        return [{"params": self._trained(), "share": 1.0}]

    def _trained(self) -> list[torch.nn.Parameter]:
        tower, blocks = self.student.tower, self.plan.blocks
        if not blocks:
            return list(self.tower.parameters())
        if not 0 < blocks <= tower.depth:
            raise DensevlError(f"blocks is {blocks}; the tower has {tower.depth}, and 0 trains all of it")
        last = range(tower.depth - blocks, tower.depth)
        return [parameter for index in last for parameter in tower.view(index, (1, 1)).module.parameters()]

    def update(self, progress: float) -> float:
        """Do one update; `progress`, 0..1 of the budget, sets the learning rate. Return the loss before it."""
        started = time.perf_counter()
        for group in self.optimiser.param_groups:
            fallen = min((progress + 0.005) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * progress))
            group["lr"] = self.plan.rate * group["share"] * fallen
        loss = self.loss(self.pictures.batch(self.step))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step, self.seconds = self.step + 1, self.seconds + time.perf_counter() - started
        return float(loss.detach())

    @torch.no_grad()
    def take(self, place: float) -> None:
        """Put the weights as they are into the mean, if there is one. Args: place: in training, 0..1, both excluded."""
        if self.mean is None:
            return
        weight = beta_density(place)
        self.weight += weight
        for old, new in zip(self.mean.state_dict().values(), self.tower.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, weight / self.weight)

    def loss(self, batch: Batch) -> torch.Tensor:
        """One minus the mean cosine between regions of the student's map and the teacher's embeddings of the crops; and
        the context's share."""
        wanted_RE = self.teacher.encode_image(batch.crops)
        tower, recipe, hints = self.student.tower, self.recipe, Hints()
        dense = finish(tower, start(tower, batch.pictures, recipe, hints), recipe, hints)
        map_BEhw = F.normalize(dense.features, dim=1)
        h, w = map_BEhw.shape[2:]
        scale = map_BEhw.new_tensor([w, h, w, h])
        found_RE = roi_align(map_BEhw, [boxes * scale for boxes in batch.boxes], 1, aligned=True)[:, :, 0, 0]
        content = 1 - F.cosine_similarity(found_RE, wanted_RE.to(found_RE)).mean()
        return content if self.context is None else content + self.plan.context_weight * self._context(batch.pictures)

    def _context(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return how far the similarity of the student's patches is from that of the context teacher's."""
        own = projections(self.student.tower, pictures, self.plan.context_source, self.recipe.position_rule)
        return context_loss(own, taught(self.context, pictures, self.teacher.mean, self.teacher.std))

    def save(self) -> Path:
        """Write the checkpoint atomically.

        Raises:
            DensevlError: If the training diverged. OutputError: If it cannot be written.
        """
        tensors = {name + key: value for name, part in self.parts.items() for key, value in part.state_dict().items()}
        for number, own in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{OPTIMISER}{number}.{key}": value for key, value in own.items()}
        still_finite(self.step, 0.0, tensors.values())
        header = {"step": self.step, "seconds": self.seconds, "weight": self.weight, "settings": self._settings}
        content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        return atomic_write(self.out / CHECKPOINT, save(content, {"clipself": json.dumps(header)}))

    def resume(self) -> None:
        """Resume from the checkpoint in `out`; without one, start from the beginning.

        Raises:
            OutputError: If it is of another model, plan or list of pictures. WeightsError: If it is damaged.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        found = read_checkpoint(path)
        tensors, header = found.tensors, json.loads(found.header.get("clipself", "{}"))
        before = header.get("settings", {})
        changed = [key for key, value in self._settings.items() if before.get(key) != value]
        if changed:
            raise OutputError(f"{path} was made with another {', '.join(changed)}; give the same, or another --out")
        for name, part in self.parts.items():
            part.load_state_dict(below(tensors, name))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(OPTIMISER):
                number, part = key.removeprefix(OPTIMISER).split(".")
                state.setdefault(int(number), {})[part] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds, self.weight = header["step"], header["seconds"], header.get("weight", 0.0)

    def export(self) -> Path:
        """Write the student, or its mean, as a weights file; see `pack`."""
        student = self.student
        if self.mean is not None:
            student = copy.deepcopy(student)
            image_tower(student).load_state_dict(self.mean.state_dict())
        return atomic_write(self.out / STUDENT, pack(student, self.source))

    @property
    def _settings(self) -> dict[str, Any]:
        about = {"model": self.teacher.name, "source": str(self.source or ""), "pictures": self.pictures.digest}
        return {**asdict(self.plan), **about}
