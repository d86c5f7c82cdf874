"""Classify whole images, regions and pixels by a fitted `FewShot`, or whole images by words alone.

Shape letters: N pictures, C classes, D width of features.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import OptionError
from densevl.fewshot.heads.nearest import Nearest
from densevl.fewshot.result import Classification
from densevl.fewshot.words import as_text, class_rows
from densevl.pipelines import remarks
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.fewshot.features import Encoded, ImageFeatures, RegionFeatures, cut_out
from densevl.pipelines.fewshot.guiding import boxes_of, guide
from densevl.pipelines.fewshot.state import Learned
from densevl.pipelines.many import source
from densevl.pipelines.segmentation.presence import taking_part
from densevl.proposals.checks import box_edges, image_boxes
from densevl.regions.fusion import ScoreSource, fuse
from densevl.regions.naming import decide
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult
from densevl.vocabulary import Background, LabelSet
from densevl.weights import require_finite


def classified(
    made: Learned,
    together: Sequence[tuple[Any, np.ndarray]],
    asked: LabelSet | None = None,
    boxes: Any = (),
) -> Iterator[Classification]:
    """Classify whole images. Boxes require a single image."""
    started = time.perf_counter()
    _require_plain(made, boxes)
    pictures = [rgb for _, rgb in together]
    boxes = box_edges(image_boxes(boxes, pictures[0].shape[:2])).tolist()
    logits, rows = _logits(made, [*pictures, *(cut_out(pictures[0], box) for box in boxes)], asked)
    probabilities = made.calibration.probabilities(logits).cpu().numpy()
    head, names = made.heads.get("image"), (asked or made.fitted()).names
    far = head.distance(rows).tolist() if isinstance(head, Nearest) else [None] * len(rows)
    margin, warned = made.calibration.margin, made.warnings(asked or made.fitted())
    found = [
        Classification(
            names,
            scores,
            p,
            pictures[min(index, len(pictures) - 1)],
            None if margin is None else tuple(n for n, one in zip(names, p, strict=True) if 1 - one <= margin),
            far[index],
            warnings=(*warned, *remarks.of_scores(logits[index])),
        )
        for index, (scores, p) in enumerate(zip(logits.float().cpu().numpy(), probabilities, strict=True))
    ]
    parts = tuple(
        replace(part, box=(box[0], box[1], box[2], box[3]), warnings=())
        for part, box in zip(found[len(pictures) :], boxes, strict=True)
    )
    wholes = [replace(whole, regions=parts) for whole in found[: len(pictures)]]
    if made.guided is not None or made.segmenter.presence is not None:
        wholes = [_again(made, whole, asked) for whole in wholes]
    seconds = round((time.perf_counter() - started) / len(pictures), 4)
    for (image, _), whole in zip(together, wholes, strict=True):
        meta: dict[str, Any] = {
            "image": source(image),
            "model": made.backbone.name,
            "reading": dict(made.backbone.reading),
        }
        yield replace(whole, meta={**meta, **made.meta(), **whole.meta, "seconds": seconds})


def _require_plain(made: Learned, boxes: Any) -> None:
    """Refuse `guided` and `presence` where they do not apply.

    Raises:
        OptionError: If there are boxes, which say where to look, or the head is calibrated, which was without them.
    """
    if made.guided is not None and len(boxes):
        raise OptionError("boxes= say where to look, but guided= finds boxes; leave one of them out")
    if (made.guided, made.segmenter.presence) != (None, None) and made.calibration.margin is not None:
        raise OptionError("this head is calibrated on whole images; leave guided and presence out")


def _again(made: Learned, whole: Classification, asked: LabelSet | None) -> Classification:
    """Judge a whole image again: drop labels that are nowhere in it, and rank the others by guided crops."""
    labels, segmenter, rgb = asked or made.fitted(), made.segmenter, whole.image
    evidence = segmenter.look(rgb, labels, segmenter.background, segmenter.segments(rgb))
    require_finite(evidence.scores, f"scores of model '{made.backbone.name}'")
    p_C, scores_C = torch.from_numpy(whole.probabilities), torch.from_numpy(whole.scores)
    scale, warned = made.backbone.logit_scale, whole.warnings
    _, absent = taking_part(evidence.scores, evidence.text, labels, segmenter.presence, scale)
    if len(absent) == len(labels):
        absent = ()
        warned = (*warned, f"no label reaches presence {segmenter.presence:g} anywhere, so none is dropped")
    here_C = torch.tensor([name not in absent for name in labels.names])
    p_C = torch.where(here_C, p_C, 0.0)
    p_C = p_C / p_C.sum().clamp(min=torch.finfo(torch.float32).tiny)
    meta: dict[str, Any] = {"presence": segmenter.presence, "absent": list(absent), "guided": made.guided}
    regions = whole.regions
    if made.guided is not None:
        likeliest = torch.where(here_C, scores_C, -torch.inf).topk(min(made.guided, int(here_C.sum()))).indices.tolist()
        where = boxes_of(evidence.scores, evidence.windows, evidence.text.classes, likeliest, rgb.shape[:2])
        seen = guide(rgb, scores_C, likeliest, where, lambda crops: _logits(made, crops, asked)[0].float().cpu())
        p_C = seen.ranked(p_C)
        scores_C = scores_C.index_copy(0, torch.tensor(likeliest), seen.logits)
        meta["boxes"] = {labels.names[number]: list(box) for number, box in zip(likeliest, where, strict=True)}
        regions = tuple(
            Classification(labels.names, tight.numpy(), tight.softmax(dim=0).numpy(), rgb, box=box)
            for tight, box in zip(seen.tight, where, strict=True)
        )
    return replace(
        whole, scores=scores_C.numpy(), probabilities=p_C.numpy(), regions=regions, meta=meta, warnings=warned
    )


def _logits(made: Learned, pictures: Sequence[np.ndarray], asked: LabelSet | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, C) of whole pictures, and their features (N, D)."""
    if asked is None:
        rows = ImageFeatures.embed(made.features, pictures)  # type: ignore[arg-type]
        return made.heads["image"].logits(rows), rows
    rows = embed_images(made.backbone, pictures)
    text = class_rows(made.segmenter.embed_text(asked, Background()), len(asked))[: len(asked)]
    return made.backbone.logit_scale * F.normalize(rows, dim=1) @ text.mT, rows


def segmented(made: Learned, image: Any, encoded: Encoded) -> SegmentationResult:
    """Label every pixel of a photo, decoded as by `Segmenter`."""
    labels = made.fitted()
    started = time.perf_counter()
    evidence, policy, taught = made.judge(encoded), made.segmenter.background, made.taught()
    result = made.segmenter.decide(evidence, encoded.rgb, labels, policy, image=image, started=started, taught=taught)
    return replace(result, meta={**result.meta, **made.meta()})


def named_regions(
    made: Learned, features: RegionFeatures, image: Any, regions: Mapping[str, Any], rgb: np.ndarray
) -> RegionResult:
    """Name regions of a photo: those given, or those the proposer finds."""
    labels, policy = made.fitted(), made.segmenter.background
    found = features.embed(rgb, **regions)
    sources = [
        ScoreSource(made.heads[kind].logits(rows).log_softmax(dim=1), features.classify.operators[kind])
        for kind, rows in found.vectors.items()
    ]
    logp = sources[0].logp if len(sources) == 1 else fuse(sources)
    valid = torch.from_numpy(found.regions.areas > 0).to(logp.device)
    classes = as_text(next(iter(made.heads.values())).text, labels.names).classes
    decided = decide(logp, classes, len(labels), policy, valid=valid)
    return RegionResult(
        regions=found.regions,
        names=labels.names,
        scores=decided.probs.cpu().numpy(),
        nothing=decided.nothing.cpu().numpy(),
        labels=decided.labels.cpu().numpy(),
        confidence=decided.scores.cpu().numpy(),
        image=found.image,
        embeddings=found.vectors,
        warnings=made.warnings(labels),
        meta={
            "image": source(image),
            **features.classify.embedding_facts(),
            **made.meta(),
            "seconds": found.seconds,
        },
    )
