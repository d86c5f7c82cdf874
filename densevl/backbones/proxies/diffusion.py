"""Stable Diffusion as a proxy: the self-attention of its UNet, and features of its decoder (CLIPer, ICCV 2025).

The photo is encoded, noised a little, and passed through the UNet once with the empty prompt. Diffusers reads the model
from a folder. Shape letters: B batch, A heads, N places, d head width.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from densevl.backbones.proxies.base import Proxy
from densevl.errors import MissingExtraError, ModelError, WeightsError
from densevl.files import shown
from densevl.refine.peaks import through_heads

PREFIX = "diffusion:"
TIME = 101
"""Of 1000 steps: the authors' choice, step 45 of 50 of the schedule of stable-diffusion-2-1-base."""
LAYERS = 2
FLOOR = 0.1


def _variant(folder: Path) -> str | None:
    """The variant of the weights in a folder, such as "fp16"; None for plain ones.

    Raises:
        WeightsError: all weights are pickles.
    """
    names = [path.name for path in Path(folder, "unet").glob("*.safetensors")]
    if not names and any(Path(folder, "unet").glob("*.bin")):
        raise WeightsError(
            f"diffusion model {shown(folder)} has weights in .bin, which can run code when they are read; save it with "
            "save_pretrained(FOLDER, safe_serialization=True)"
        )
    found = {re.sub(r"-\d+-of-\d+$", "", name.removesuffix(".safetensors")).partition(".")[2] for name in names}
    return None if not found or "" in found else min(found)


@contextlib.contextmanager
def _quiet(diffusers: Any) -> Iterator[None]:
    """Hide the progress bars and notes of diffusers and transformers."""
    from transformers.utils import logging as ours

    parts = (diffusers.utils.logging, ours)
    before = [(part.get_verbosity(), part.is_progress_bar_enabled()) for part in parts]
    try:
        for part in parts:
            part.set_verbosity_error()
            part.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for part, (level, bars) in zip(parts, before, strict=True):
            part.set_verbosity(level)
            if bars:
                part.enable_progress_bar()


class DiffusionProxy(Proxy):
    """A latent diffusion model of diffusers' `StableDiffusionPipeline`.

    `spread` is CLIPer's: the product of the maps of all heads of the last two self-attentions at the latents' size, on
    the photo squeezed to the trained size. `encode` gives the last decoder block's output as "tokens", and the
    projections of the last self-attention.

    Attributes:
        time: step of the training's noise schedule, usually of 1000; earlier steps have less noise.
        seed: of the noise, the same for all photos. side: of the photo for `spread`, in pixels.
    """

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, pipe: Any, *, name: str, time: int = TIME, seed: int = 0) -> None:
        """Wrap a pipeline; its text encoder is used once, for the empty prompt.

        Raises:
            ModelError: its UNet's last block has no self-attention, or its noise schedule lacks this step.
        """
        self.name, self.time, self.seed = name, time, seed
        pipe = pipe.to(torch.float32)
        self.unet, self.vae = pipe.unet.eval().requires_grad_(False), pipe.vae.eval().requires_grad_(False)
        found = [part for key, part in self.unet.up_blocks[-1].named_modules() if key.split(".")[-1] == "attn1"]
        if not found:
            raise ModelError(f"diffusion model '{name}' has no self-attention at the size of its latents")
        self._attentions = found[-LAYERS:]
        self.patch_size = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.embed_dim = int(self.unet.config.block_out_channels[0])
        self.side = int(self.unet.config.sample_size) * self.patch_size
        kept = getattr(pipe.scheduler, "alphas_cumprod", ())
        if not time < len(kept):
            kind = type(pipe.scheduler).__name__
            raise ModelError(
                f"diffusion model '{name}' has no noise of step {time}: {kind} is another kind of schedule"
            )
        self._kept = float(kept[time])  # from training; the scheduler's steps and scales belong to its sampler
        longest = pipe.text_encoder.config.max_position_embeddings
        pipe.tokenizer.model_max_length = min(pipe.tokenizer.model_max_length, longest)
        with torch.no_grad():
            self._prompt = pipe.encode_prompt("", "cpu", 1, False)[0]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> DiffusionProxy:
        """Read a folder in diffusers' format, with safetensors, such as that of stable-diffusion-2-1-base.

        Raises:
            ModelError: there is no such folder.
            WeightsError: the folder is damaged, or of another kind.
            MissingExtraError: diffusers is not installed.
        """
        try:
            import diffusers
        except ImportError as error:
            raise MissingExtraError("diffusers", "diffusion", "a diffusion model as proxy") from error
        if not Path(folder, "model_index.json").is_file():
            raise ModelError(
                f"{shown(folder)} holds no diffusion model: give {PREFIX}FOLDER with the model_index.json, unet, vae, "
                "text_encoder, tokenizer and scheduler of diffusers"
            )
        how: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "safety_checker": None}
        how["variant"] = _variant(Path(folder))
        try:
            with _quiet(diffusers):
                pipe = diffusers.StableDiffusionPipeline.from_pretrained(
                    os.fspath(folder), requires_safety_checker=False, **how
                )
                return cls(pipe, name=f"{PREFIX}{os.fspath(folder)}")
        except ModelError:
            raise
        except Exception as error:  # from diffusers, transformers or safetensors
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"diffusion model {shown(folder)} cannot be read: {reason}; fetch it again") from error

    def to(self, device: torch.device | str) -> DiffusionProxy:
        """Move it to a device."""
        self.unet.to(device)
        self.vae.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """See `Proxy`."""
        return next(self.unet.parameters()).device

    @torch.no_grad()
    def heads(self, pixels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """q, scaled, and k (N, d) of every head of the last self-attentions, for one photo (1, 3, H, W) in -1..1."""
        kept, _ = self._run(pixels)
        found = []
        for attention, (q_BND, k_BND, _) in zip(self._attentions, kept, strict=True):
            q_AND, k_AND = (part[0].unflatten(1, (attention.heads, -1)).transpose(0, 1) for part in (q_BND, k_BND))
            found += [(q_Nd * attention.scale, k_Nd) for q_Nd, k_Nd in zip(q_AND, k_AND, strict=True)]
        return found

    def squeezed(self, pixels: torch.Tensor) -> torch.Tensor:
        """A photo (1, 3, H, W) in -1..1 at the trained size, squeezed to a square."""
        return F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", antialias=True)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the places of `spread`."""
        return (self.side // self.patch_size,) * 2

    def spread(self, pixels: torch.Tensor, values_NC: torch.Tensor) -> torch.Tensor:
        """Spread values of the grid's places (N, C) by the product of all heads' maps; the photo is as in `heads`."""
        return through_heads(self.heads(pixels), values_NC, FLOOR)

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._run(pixels)[1]

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        q, k, v = (part.mT.unflatten(2, grid) for part in self._run(pixels)[0][-1])
        return q, k, v

    def _run(self, pixels: torch.Tensor) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        """q, k and v (B, N, D) of the attentions, and the last decoder block's output (B, C, h, w)."""
        kept: dict[nn.Module, torch.Tensor] = {}
        layers = [[attention.to_q, attention.to_k, attention.to_v] for attention in self._attentions]
        watched = [*(part for parts in layers for part in parts), self.unet.up_blocks[-1]]

        def keep(module: nn.Module, given: Any, found: torch.Tensor) -> None:
            kept[module] = found

        handles = [module.register_forward_hook(keep) for module in watched]
        try:
            latents = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
            noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(self.seed))
            noisy = self._kept**0.5 * latents + (1 - self._kept) ** 0.5 * noise.to(latents)
            prompt = self._prompt.expand(len(pixels), -1, -1).to(latents)
            self.unet(noisy, self.time, encoder_hidden_states=prompt)
        finally:
            for handle in handles:
                handle.remove()
        return [[kept[part] for part in parts] for parts in layers], kept[watched[-1]]
