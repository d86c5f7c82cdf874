"""Masks with class scores of their own, from a segmentation model that was trained on a list of classes.

Mask2Former, OneFormer, EoMT, MaskFormer and DETR of transformers give both, and so does any other mask decoder whose
outputs are saved. `RegionClassifier` weights these scores against CLIP's: see `regions.ensemble`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl import digest
from densevl.errors import ProposalError, suggest
from densevl.files import atomic_write, shown
from densevl.images import read_image
from densevl.images.addresses import is_address
from densevl.proposals.base import Proposals
from densevl.proposals.checks import as_array
from densevl.saved import Kind, read_arrays

FILE = Kind(
    "decoder file", ProposalError, "write it with Decoded.save, or numpy.savez(FILE, masks=, logits=, names=, void=-1)"
)
_MASKS_AT_ONCE = 16  # at the size of the photo, as float


@dataclass(frozen=True, eq=False, init=False)
class Decoded(Proposals):
    """Masks of one image with their decoder's class scores; usable wherever `Proposals` are.

    Examples:
        >>> decoded = Decoded.from_hf(model(**inputs), model.config.id2label, (height, width))
        >>> RegionClassifier("ViT-B-16/openai")(photo, ["cat", "lamp"], regions=decoded)

    Attributes:
        logits: float32 (M, K), or (M, K + 1) with a column for "no object"; their softmax is the decoder's judgement.
        names: the K classes in the order of the columns. Commas separate several words for one: "road, route".
        void: the column of "no object", None if there is none.
        trained: names that the decoder was trained on, if it takes any words, as FC-CLIP's does; otherwise `names`.
    """

    logits: npt.NDArray[np.float32]
    names: tuple[str, ...]
    void: int | None
    trained: tuple[str, ...]

    def __init__(
        self,
        masks: Any,
        logits: Any,
        names: Sequence[str] | Mapping[int, str],
        *,
        void: int | None = -1,
        trained: Sequence[str] | None = None,
        quality: Any = None,
    ) -> None:
        """Join masks and scores.

        Args:
            masks: `Proposals`, or (M, H, W) as `Proposals.from_masks` takes them: cut, not soft.
            logits: (M, K + 1), or (M, K) with `void` None: before the softmax; an array or a tensor.
            names: K names, or Hugging Face's id2label.
            void: the column of "no object": -1, the last, for transformers and detectron2, 0 for torchvision;
                None if every mask is an object.
            trained: see the attributes. quality: as `Proposals.from_masks` takes it.

        Raises:
            ProposalError: numbers of masks, columns and names do not fit each other, logits are probabilities or NaN.
        """
        own = masks if isinstance(masks, Proposals) else Proposals.from_masks(masks, quality=quality)
        super().__init__(own.packed, own.size, own.quality, own.boxes)
        named = _named(names)
        for name, value in (
            ("logits", _logits(logits, len(own), len(named), void)),
            ("names", named),
            ("void", None if void is None else void % (len(named) + 1)),
            ("trained", named if trained is None else _named(trained)),
        ):
            object.__setattr__(self, name, value)

    def select(self, index: Any) -> Decoded:
        """See `Proposals.select`."""
        few = super().select(index)
        rows = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(rows, slice) and rows.dtype != np.bool_:
            rows = rows.astype(np.int64).reshape(-1)
        return Decoded(few, self.logits[rows], self.names, void=self.void, trained=self.trained)

    def log_probs(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Log probabilities of the classes, without "no object", (M, K); and the probability of "no object", (M,)."""
        if self.void is None:
            return _log_softmax(self.logits), np.zeros(len(self), np.float32)
        void = np.exp(_log_softmax(self.logits)[:, self.void])
        return _log_softmax(np.delete(self.logits, self.void, axis=1)), void

    @classmethod
    def from_hf(
        cls,
        outputs: Any,
        id2label: Mapping[int, str],
        size: tuple[int, int],
        *,
        index: int = 0,
        share: tuple[float, float] = (1.0, 1.0),
    ) -> Decoded:
        """Read the outputs of a segmentation model of transformers: Mask2Former, OneFormer, EoMT, MaskFormer, DETR.

        Mask logits are first resized to the image and then thresholded: a pixel is in a mask if its probability is
        above one half. `quality` is the mean of that probability over the mask. Masks without a pixel are left out.

        Args:
            outputs: with class_queries_logits (B, Q, K + 1) and masks_queries_logits (B, Q, h, w), or DETR's logits and
                pred_masks.
            id2label: `model.config.id2label`. size: (H, W) of the image. index: which image of the batch.
            share: fraction of the model's input, in height and in width from the top left, that shows the image;
                below 1 if the processor padded it.

        Raises:
            ProposalError: outputs are of another kind, or numbers do not fit.
        """
        import torch

        pairs = (("class_queries_logits", "masks_queries_logits"), ("logits", "pred_masks"))
        given = [[getattr(outputs, name, None) for name in names] for names in pairs]
        found: Any = next((pair for pair in given if all(part is not None for part in pair)), None)
        if found is None or found[0].ndim != 3 or found[1].ndim != 4 or found[0].shape[:2] != found[1].shape[:2]:
            raise ProposalError(
                f"outputs are a {type(outputs).__name__} without class and mask logits of queries: give what a "
                "Mask2Former, OneFormer, EoMT, MaskFormer or DETR for segmentation of transformers returned"
            )
        if not all(0 < part <= 1 for part in share):
            raise ProposalError(f"share is {share}; both are parts of the model's input, above 0, up to 1")
        classes, masks = (tensor[index].detach().float().cpu() for tensor in found)
        rows, cols = ((2 * (torch.arange(n) + 0.5) / n * part - 1) for n, part in zip(size, share, strict=True))
        places = torch.stack([cols.expand(size[0], -1), rows[:, None].expand(-1, size[1])], dim=-1)[None]
        packed, quality, kept = [], [], []
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            few = masks[None, start : start + _MASKS_AT_ONCE]
            full = torch.nn.functional.grid_sample(
                few, places, mode="bilinear", padding_mode="border", align_corners=False
            )[0]
            inside, sure = full > 0, full.sigmoid()
            areas = inside.sum(dim=(1, 2))
            quality.append(((sure * inside).sum(dim=(1, 2)) / areas.clamp(min=1)).numpy())
            packed.append(np.packbits(inside.flatten(1).numpy(), axis=1))
            kept.append((areas > 0).numpy())
        filled = np.concatenate(kept)
        own = Proposals.from_packed(np.concatenate(packed)[filled], size, np.concatenate(quality)[filled])
        return cls(own, classes[torch.from_numpy(filled)], id2label)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an .npz file of packed masks, size, logits, names, void and trained.

        Raises:
            OutputError: the disk refuses.
        """
        arrays = {"packed": self.packed, "size": np.array(self.size), "quality": self.quality, "logits": self.logits}
        void = {} if self.void is None else {"void": np.array(self.void)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, **void, names=np.array(self.names), trained=np.array(self.trained))  # type: ignore[arg-type]
        return atomic_write(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Decoded:
        """Read what `save` wrote, or an .npz file by others.

        Args:
            path: with the arrays masks bool (M, H, W), or packed and size as of `Proposals`; logits; names; and, if
                there is a column for "no object", void. quality and trained are optional.

        Raises:
            ProposalError: the file is missing, damaged, or has other contents.
        """
        arrays = read_arrays(path, FILE)
        with FILE.sense(path, inner=True):
            quality = arrays.get("quality")
            if "packed" in arrays:
                height, width = arrays["size"].tolist()
                masks: Any = Proposals.from_packed(arrays["packed"], (height, width), quality)
            else:
                masks = Proposals.from_masks(arrays["masks"], quality=quality)
            void = int(arrays["void"]) if "void" in arrays else None
            trained = arrays["trained"].tolist() if "trained" in arrays else None
            return cls(masks, arrays["logits"], arrays["names"].tolist(), void=void, trained=trained)


class DecodedFiles:
    """A decoder's results for many photos, in a file for each.

    Args:
        path: a folder with NAME.npz for NAME.jpg, or one .npz file for the only photo.

    Raises:
        ProposalError: it is neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = FILE.path(path)
        if not self.path.exists():
            raise FILE.bad(path, "does not exist")
        if not self.path.is_dir() and self.path.suffix != ".npz":
            raise ProposalError(
                f"{shown(path)} is not a decoder file: give an .npz file, a folder of them, or the file of SAN"
            )

    def fingerprint(self) -> str:
        """Distinguishes these files from others, and from later ones of the same names."""
        files = sorted(self.path.glob("*.npz")) if self.path.is_dir() else [self.path]
        return digest.of_text(*(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files))

    def of(self, image: Any) -> Decoded:
        """The decoder's result for the photo at a path.

        Raises:
            ProposalError: it has no file, or a bad one.
        """
        if not self.path.is_dir():
            return Decoded.load(self.path)
        stem = str(image).partition("?")[0].rpartition("/")[2] if is_address(str(image)) else Path(image).name
        name = f"{Path(stem).stem}.npz"
        if not (self.path / name).is_file():
            near = suggest(name, [file.name for file in sorted(self.path.glob("*.npz"))])
            raise ProposalError(f"no decoder file for {shown(image)}: {shown(self.path)} holds no {name}{near}")
        return Decoded.load(self.path / name)


def hf_decoder(model: Any, processor: Any, **settings: Any) -> Callable[[Any], Decoded]:
    """Use a segmentation model of transformers as `proposals=`: its masks and scores for every photo.

    Examples:
        >>> model = Mask2FormerForUniversalSegmentation.from_pretrained(FOLDER)
        >>> classify = RegionClassifier(proposals=hf_decoder(model, AutoImageProcessor.from_pretrained(FOLDER)))

    Args:
        model: its outputs go to `Decoded.from_hf`. processor: its own.
        settings: for the processor with each photo; OneFormer's needs task_inputs=["panoptic"].

    Raises:
        ProposalError: the processor splits photos into windows.
    """
    if getattr(processor, "do_split_image", False):
        raise ProposalError(
            "the processor splits photos into windows, of which each has masks of its own: set "
            "processor.do_split_image = False and processor.do_pad = True"
        )

    def propose(image: Any) -> Decoded:
        import torch

        rgb = read_image(image)
        inputs = processor(images=rgb, return_tensors="pt", **settings)
        size = (rgb.shape[0], rgb.shape[1])
        fed = inputs["pixel_values"].shape[-2:]
        share = (1.0, 1.0)
        if "pixel_mask" in inputs:
            real = inputs["pixel_mask"][0] > 0
            share = (float(real.any(dim=1).float().mean()), float(real.any(dim=0).float().mean()))
        elif getattr(processor, "do_pad", False):  # the aspect ratio was kept, and the rest of the input is padding
            scale = min(fed[0] / size[0], fed[1] / size[1])
            share = (min(1.0, size[0] * scale / fed[0]), min(1.0, size[1] * scale / fed[1]))
        with torch.inference_mode():
            outputs = model(**{name: value.to(model.device) for name, value in inputs.items()})
        return Decoded.from_hf(outputs, model.config.id2label, size, share=share)

    return propose


def _named(names: Any) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        try:
            numbered = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError) as error:
            raise ProposalError("names of a decoder are a dict whose keys are not numbers; give id2label") from error
        if sorted(numbered) != list(range(len(numbered))):
            raise ProposalError(f"names of a decoder are numbered {min(numbered)} to {max(numbered)}, with gaps")
        names = [numbered[number] for number in range(len(numbered))]
    if isinstance(names, str) or not len(names) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ProposalError("names of a decoder are not a list of strings, one a class; give model.config.id2label")
    return tuple(names)


def _logits(given: Any, masks: int, names: int, void: int | None) -> npt.NDArray[np.float32]:
    given = given.detach().float() if hasattr(given, "detach") else given
    logits = as_array(given, "logits of a decoder", "(M, classes)").astype(np.float32)
    columns = names if void is None else names + 1
    if logits.shape != (masks, columns):
        hint = ": for a decoder without 'no object' give void=None" if logits.shape == (masks, names) else ""
        hint = ": if one is 'no object', give its column as void=" if logits.shape == (masks, names + 1) else hint
        raise ProposalError(
            f"logits of a decoder are {logits.shape}, and {masks} masks of {names} names need ({masks}, {columns})"
            + hint
        )
    if void is not None and not -columns <= void < columns:
        raise ProposalError(f"void is {void}; it is a column of logits, of which there are {columns}")
    if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all(axis=1).any():
        raise ProposalError("logits of a decoder hold NaN or infinity")
    if masks and columns > 1 and (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        raise ProposalError("logits of a decoder look like probabilities: give their logarithms, numpy.log(p)")
    return logits


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not logits.size:
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)
