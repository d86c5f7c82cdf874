"""One image in SAM: encoded once, then prompted any number of times; only requested masks are enlarged.

Kirillov et al., "Segment Anything" (ICCV 2023). The modules are those of the package `segment-anything`, or of one with
the same structure; they are called differently. The predicted quality is read before the masks are made, so that an
unwanted mask costs no upscaling, and enlarging is one matrix per axis instead of two resizes.

Shape letters: P prompts, K points a prompt, T mask tokens, C channels, N masks, h/w decoded grid, H/W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from densevl.images import UInt8Array
from densevl.kernels.resample import AxisPlan, bilinear_matrix
from densevl.proposals.sam.decoder import Decoder, decoder_of
from densevl.proposals.sam.encoder import run_encoder

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


PIXELS = {"cpu": 64}
"""Pixels of an axis that are enlarged together, from the few cells they touch; elsewhere all are, in one product."""


class Decoded(NamedTuple):
    """Masks of a batch of prompts with sufficient predicted quality.

    Attributes:
        logits: float (N, h, w), of the whole padded square, above 0 inside.
        quality: float (N,), the predicted IoU, unclipped: some models exceed 1.
        prompt: int64 (N,), which prompt of the batch; ascending, the masks of one in the model's order.
    """

    logits: torch.Tensor
    quality: torch.Tensor
    prompt: torch.Tensor


@dataclass(frozen=True, eq=False)
class SamImage:
    """An image's embedding, and the way from prompts to masks. Made by `encode`.

    Attributes:
        sam: the model. rgb: uint8 (H, W, 3). size: (H, W) of the image in pixels; covered: its size in the encoder's
            input, without padding.
        embedding: (1, C, g, g), the image's plus that of "no mask given". places: (1, C, g, g), position codes.
        across, down: (W, w) and (H, h): bilinear enlargement to the encoder's square, cut, then to the image.
    """

    sam: Sam
    rgb: UInt8Array
    size: tuple[int, int]
    covered: tuple[int, int]
    embedding: torch.Tensor
    places: torch.Tensor
    across: AxisPlan
    down: AxisPlan

    @classmethod
    @torch.no_grad()
    def encode(cls, sam: Sam, rgb: UInt8Array) -> SamImage:
        """Resize uint8 (H, W, 3) so that its longer side fills the model's square, as the package does, and encode it.

        Args:
            sam: with `image_encoder`, `prompt_encoder`, `mask_decoder`, `preprocess`, as in `segment_anything`.
            rgb: as `densevl.images.read_image` gives it.
        """
        height, width = size = rgb.shape[:2]
        side = int(sam.image_encoder.img_size)
        scale = side / max(size)
        covered = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        resized = np.asarray(Image.fromarray(rgb).resize(covered[::-1], Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].to(sam.pixel_mean.device)
        prompts = sam.prompt_encoder
        unprompted = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        embedding = run_encoder(sam.image_encoder, sam.preprocess(pixels)) + unprompted
        grid = 4 * prompts.image_embedding_size[0]  # after the decoder's two upscalings
        down, across = (
            (bilinear_matrix(length, part) @ bilinear_matrix(side, grid)[:part]).astype(np.float32)
            for length, part in zip(size, covered, strict=True)
        )
        plans = (AxisPlan(torch.from_numpy(matrix).to(embedding.device)) for matrix in (across, down))
        return cls(sam, rgb, size, covered, embedding, prompts.get_dense_pe(), *plans)

    @cached_property
    def _decoder(self) -> Decoder:
        return decoder_of(self.sam.mask_decoder, self.embedding, self.places)

    @property
    def at_once(self) -> int:
        """The best number of prompts per call, which keeps the decoder's tensors small on this device."""
        return self._decoder.at_once

    @torch.no_grad()
    def decode(
        self,
        points_PK2: np.ndarray | None = None,
        labels_PK: np.ndarray | None = None,
        boxes_P4: np.ndarray | None = None,
        *,
        several: bool = True,
        above: float = -float("inf"),
    ) -> Decoded:
        """Decode a batch of prompts: points, or boxes, or a box and points each.

        Args:
            points_PK2: x and y in pixels of the image. labels_PK: 1 inside, 0 outside; None is 1 everywhere.
            boxes_P4: x0 y0 x1 y1 in pixels of the image.
            several: three masks per prompt, of a whole, a part and a part of that; or one, for a clear prompt.
            above: masks whose predicted quality is not above this are not made.
        """
        tokens = self._prompt_tokens(points_PK2, labels_PK, boxes_P4)
        count, decoder = len(tokens), self.sam.mask_decoder
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output.expand(count, -1, -1), tokens], dim=1)
        tokens, cells = self._decoder.transform(tokens)
        first, last = (1, decoder.num_mask_tokens) if several else (0, 1)
        quality = decoder.iou_prediction_head(tokens[:, 0])[:, first:last]
        prompt, mask = torch.nonzero(quality > above, as_tuple=True)
        used, place = prompt.unique(return_inverse=True)
        heads = decoder.output_hypernetworks_mlps
        filters = torch.stack([heads[i](tokens[used, 1 + i]) for i in range(first, last)], dim=1)
        made = self._decoder.masks(cells if len(used) == count else cells[used], filters)
        return Decoded(made[place, mask], quality[prompt, mask], prompt)

    def enlarged(self, logits: torch.Tensor, floor: float) -> Iterator[tuple[torch.Tensor, slice, slice]]:
        """Enlarge logits to the size of the image, one mask after the other, only where they can be above `floor`.

        A pixel is a mean of decoded cells: if none of them is above `floor`, the pixel is not either.

        Args:
            logits: (N, h, w) from `decode`. floor: below every level that the result will be compared with.

        Yields:
            For each mask the logits (rows, columns) of a part of the image, and the slices of that part.
        """
        above = logits > floor
        parts_down = self._touched(above.any(dim=2), self.down.matrix)
        parts_across = self._touched(above.any(dim=1), self.across.matrix)
        for mask, rows, columns in zip(logits, parts_down, parts_across, strict=True):
            wide = _resampled(self.across, mask.T, columns).T.contiguous()
            yield _resampled(self.down, wide, rows), rows, columns

    @staticmethod
    def _touched(used: torch.Tensor, weights: torch.Tensor) -> list[slice]:
        """The pixels (slices of L) to which cells in use (N, cells) contribute; weights (L, cells)."""
        touched = used.float() @ (weights != 0).float().T > 0  # (N, L)
        pixels = torch.arange(1, len(weights) + 1, device=used.device)
        last = (touched * pixels).amax(dim=1)
        first = (touched * (len(weights) + 1 - pixels)).amax(dim=1)
        ends = zip((len(weights) - first).tolist(), last.tolist(), strict=True)
        return [slice(min(start, stop), stop) for start, stop in ends]

    def cell_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The fraction of each row (h,) and column (w,) of the decoded grid that lies in the image, not in padding."""
        side = int(self.sam.image_encoder.img_size)
        rows, cols = (
            (part * cells / side - torch.arange(cells, device=self.embedding.device)).clamp(0, 1)
            for part, cells in zip(self.covered, (self.down.matrix.shape[1], self.across.matrix.shape[1]), strict=True)
        )
        return rows, cols

    def _prompt_tokens(
        self, points_PK2: np.ndarray | None, labels_PK: np.ndarray | None, boxes_P4: np.ndarray | None
    ) -> torch.Tensor:
        """Prompts in pixels of the image to (P, K', C)."""
        scale = np.array([self.covered[1] / self.size[1], self.covered[0] / self.size[0]])  # x, y
        device = self.embedding.device
        points = boxes = None
        if points_PK2 is not None:
            labels_PK = np.ones(points_PK2.shape[:2], np.int64) if labels_PK is None else labels_PK
            # float64, as in the package: its position codes turn a rounded coordinate into another angle
            points = torch.as_tensor(points_PK2 * scale, device=device), torch.as_tensor(labels_PK, device=device)
        if boxes_P4 is not None:
            boxes = torch.as_tensor(boxes_P4.reshape(-1, 2, 2) * scale, device=device).reshape(-1, 4)
        return self.sam.prompt_encoder(points, boxes, None)[0]


def _resampled(plan: AxisPlan, x: torch.Tensor, wanted: slice) -> torch.Tensor:
    """The wanted rows of `plan.matrix @ x`."""
    x = x.to(plan.matrix.dtype)  # a caller's mixed precision gives half precision
    made = x.new_empty(max(0, wanted.stop - wanted.start), x.shape[1])
    for block in plan.blocks(PIXELS.get(x.device.type, len(plan.matrix))):
        start, stop = max(block.pixels.start, wanted.start), min(block.pixels.stop, wanted.stop)
        if start < stop:
            weights = block.weights[start - block.pixels.start : stop - block.pixels.start]
            torch.mm(weights, x[block.touched], out=made[start - wanted.start : stop - wanted.start])
    return made
