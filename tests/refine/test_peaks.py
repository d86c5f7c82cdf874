"""CLIPer's last step: maps of all heads multiplied, peaks kept; by a proxy's features and a tiny diffusion model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import PHOTOS, close, random_clip, wrap
from densevl import Segmenter, load_proxy
from densevl.backbones import InferenceProtocol
from densevl.backbones.proxies import Proxy
from densevl.errors import DensevlError
from densevl.images import read_image
from densevl.pipelines.feeding import feed
from densevl.pipelines.segmentation import refinement
from densevl.recipes import get
from densevl.refine.peaks import SpreadOnGrid, through_heads

SCENE = PHOTOS.parent / "scenes" / "wood.png"
SMALL = InferenceProtocol(short_side=48, crop=None)


class Colours(Proxy):
    """A proxy whose features are random filters of a patch."""

    name, patch_size, embed_dim, mean, std = "colours", 8, 12, (0.5,) * 3, (0.25,) * 3

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        filters = torch.randn(self.embed_dim, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        return F.conv2d(pixels, filters, stride=self.patch_size)

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (self._tokens(pixels),) * 3


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


def cleaned(attention: np.ndarray, floor: float) -> np.ndarray:
    """A map entry by entry: over its column's largest, little ones dropped, rows to sum 1."""
    count = len(attention)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            share = attention[i, j] / (max(attention[:, j]) + 1e-5)
            found[i, j] = share if share >= floor else 0
        found[i] /= found[i].sum() + 1e-5
    return found


def test_heads_are_multiplied_from_the_first_to_the_last_without_their_product() -> None:
    heads = [(torch.randn(20, 4), torch.randn(20, 4)) for _ in range(3)]
    values = torch.rand(20, 5)
    product = np.eye(20)
    for q, k in heads:
        weights = np.exp(q.double().numpy() @ k.double().numpy().T)
        product = product @ cleaned(weights / weights.sum(axis=1, keepdims=True), 0.1)
    close(through_heads(heads, values), product @ values.double().numpy())


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_peak_is_halfway_between_before_and_after(probabilities) -> None:
    scores = torch.rand(1, 2, 4, 6)
    found = SpreadOnGrid(lambda v: 0.5 * v + 0.5 * v.mean(dim=0), (4, 6), probabilities=probabilities)(scores)
    after = 0.5 * scores + 0.5 * scores.mean(dim=(2, 3), keepdim=True)
    want = (scores.amax(dim=(2, 3)) + after.amax(dim=(2, 3))) / 2
    close(found.amax(dim=(2, 3)), want, tolerance=1e-4, why="a term of 1e-5 is in the rule")
    flat = [(part - part.mean()) / part.std() for part in (found[0, 0], after[0, 0])]
    close(*flat, tolerance=1e-4, why="a term of 1e-5 is in the rule")


def test_a_proxy_spreads_by_the_softmax_of_likeness_over_the_mean(clip, monkeypatch) -> None:
    monkeypatch.setattr(refinement, "SEEN_CELLS", 6)
    rgb = read_image(SCENE)
    pixels, _ = feed(rgb, clip, SMALL)
    scores = torch.rand(1, 2, 6, 6)
    found = refinement.by_proxy(Colours(), pixels, clip.mean, clip.std, get("cliper"))(scores)
    features = Colours().from_clip(pixels, clip.mean, clip.std)[0].flatten(1).double()
    unit = features / features.norm(dim=0)
    alike = (unit.T @ unit).numpy()
    logits = 3 * (alike - 1.2 * alike.mean())
    weights = np.where(logits < 0, 0, np.exp(logits))
    np.fill_diagonal(weights, np.exp(np.diag(logits)))
    after = weights / weights.sum(axis=1, keepdims=True) @ scores[0].flatten(1).double().numpy().T
    before = scores[0].flatten(1).double().numpy().T
    want = after * (before.max(axis=0) + after.max(axis=0)) / 2 / (after.max(axis=0) + 1e-5)
    close(found[0].flatten(1), want.T)


def test_any_recipe_takes_a_proxy_for_its_refinement_alone(clip, monkeypatch) -> None:
    monkeypatch.setattr(refinement, "SEEN_CELLS", 8)
    build = {"templates": "photo", "protocol": SMALL}
    plain = Segmenter(clip, "sclip", **build)(SCENE, ["cat", "dog"])
    refined = Segmenter(clip, "sclip", refine="proxy", proxy=Colours(), **build)
    found = refined(SCENE, ["cat", "dog"])
    assert not np.allclose(found.confidence, plain.confidence)
    assert (found.meta["refine"], found.meta["proxy"]) == ("proxy", "colours")
    assert Segmenter(clip, "cliper", refine="proxy", proxy="mini-sam", **build)(SCENE, ["cat", "dog"]).labels.size


def test_without_a_proxy_at_hand_the_way_out_is_named(clip, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DensevlError, match=r"refine 'proxy' borrows from 'dino_vitb8'.*proxy='mini-sam'"):
        Segmenter(clip, "sclip", refine="proxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Stable Diffusion of random weights, 8 x 8 latents of 16 x 16 pixels, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    place = tmp_path_factory.mktemp("sd")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=8)
    text = transformers.CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(place / "model")
    return place / "model"


def test_a_diffusion_model_spreads_by_the_product_of_its_heads(folder, clip) -> None:
    proxy = load_proxy(f"diffusion:{folder}", device="cpu")
    assert (proxy.side, proxy.grid, proxy.patch_size) == (16, (8, 8), 2)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    maps: list[torch.Tensor] = []

    class Watching:
        """diffusers' own attention, its maps kept."""

        def __call__(self, attention, states, encoder_hidden_states=None, attention_mask=None, temb=None):
            q, k, v = (
                attention.head_to_batch_dim(layer(states)) for layer in (attention.to_q, attention.to_k, attention.to_v)
            )
            shares = attention.get_attention_scores(q, k, None)
            maps.extend(shares)
            return attention.to_out[0](attention.batch_to_head_dim(shares @ v))

    values = torch.rand(64, 3)
    found = proxy.spread(pixels, values)
    for attention in proxy._attentions:
        attention.set_processor(Watching())
    again = proxy.heads(pixels)
    assert len(maps) == len(again) == 2 * proxy._attentions[0].heads
    product = np.eye(64)
    for attention in maps:
        product = product @ cleaned(attention.double().numpy(), 0.1)
    close(found, product @ values.double().numpy())


def kept_by(schedule: object) -> float:
    """The share of the picture in the latents at step 101, from the betas themselves."""
    betas = np.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, 1000) ** 2
    return float(np.cumprod(1 - betas)[101])


@pytest.mark.parametrize(
    "kind",
    ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
     "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"],
)  # fmt: skip
def test_the_noise_is_that_of_the_training_whatever_the_sampler(folder, tmp_path, kind) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    copied(folder, tmp_path)
    getattr(diffusers, kind)(**schedule).save_pretrained(tmp_path / "scheduler")
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", kind]}))
    proxy = load_proxy(f"diffusion:{tmp_path}", device="cpu")
    seen: list[tuple[torch.Tensor, int]] = []
    proxy.unet.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    proxy.heads(pixels)
    with torch.no_grad():
        latents = proxy.vae.encode(pixels).latent_dist.mean * proxy.vae.config.scaling_factor
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0))
    kept = kept_by(schedule)
    close(seen[0][0], kept**0.5 * latents + (1 - kept) ** 0.5 * noise, tolerance=1e-5, why="betas in float32")
    assert seen[0][1] == 101


def test_folders_saved_in_other_ways_are_read_or_told_of(folder, tmp_path, capfd) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    pipe.save_pretrained(tmp_path / "pickles", safe_serialization=False)
    copied(folder, tmp_path / "long")
    config = tmp_path / "long" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": None}))
    capfd.readouterr()
    pixels = torch.rand(1, 3, 16, 16)
    want = load_proxy(f"diffusion:{folder}").encode(pixels)
    for way in ("Diffusion:{}/half", "diffusion:{}/long"):
        close(load_proxy(way.format(tmp_path)).encode(pixels), want)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DensevlError, match="safe_serialization=True"):
        load_proxy(f"diffusion:{tmp_path}/pickles")


def copied(folder, to) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())


def test_a_photo_has_the_same_features_each_time_and_in_any_batch(folder) -> None:
    proxy = load_proxy(f"diffusion:{folder}", device="cpu")
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    together = proxy.encode(pixels)
    assert together.shape == (2, 16, 8, 12)
    close(together[1], proxy.encode(pixels[1:])[0])
    assert proxy.encode(pixels, "k").shape == (2, 16, 8, 12)


def test_cliper_whole_and_proxyclip_run_on_it(folder, clip) -> None:
    build = {"templates": "photo", "protocol": SMALL, "proxy": f"diffusion:{folder}"}
    found = Segmenter(clip, "cliper", refine="proxy", **build)(SCENE, ["cat", "dog"])
    again = Segmenter(clip, "cliper", refine="proxy", **build)(SCENE, ["cat", "dog"])
    assert found == again
    assert Segmenter(clip, "proxyclip", **build)(SCENE, ["cat", "dog"]).labels.size


def test_a_folder_that_is_none_or_damaged_is_one_line(folder, tmp_path) -> None:
    with pytest.raises(DensevlError, match="holds no diffusion model"):
        load_proxy("diffusion:absent")
    with pytest.raises(DensevlError, match="all in its folder"):
        load_proxy(f"diffusion:{folder}", heads=3)
    copied(folder, tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DensevlError, match="cannot be read"):
        load_proxy(f"diffusion:{tmp_path}")
