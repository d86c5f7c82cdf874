"""Load models as their publishers save them: the largest difference of features from the publisher's own.

    python -m tools.forms            # print the table
    python -m tools.forms --write    # put it into docs/models.md

Each row makes a small model with random weights in the publishing library, saves it as that library does, and loads the
file or folder. For a program without a package, its arithmetic or names are rewritten here from its paper or public
code, and share nothing with densevl's reader. Weights are scaled so that features have size one: with the usual ones, a
wrong activation would go unnoticed.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from densevl import load_backbone
from tools.pages import replaced

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END_MARK = "<!-- forms: python -m tools.forms --write -->", "<!-- /forms -->"
SIDE, VOCABULARY, LENGTH, EMBED = 32, 200, 16, 24
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49408,
    "max_position_embeddings": LENGTH,
}
WORDS = {"context_length": LENGTH, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
OWN: dict[str, Any] = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64},
    "text_cfg": WORDS,
}
RESNET = {**OWN, "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}}
EVA = {"img_size": SIDE, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}


@dataclass(frozen=True)
class Saved:
    """A model on disk, with the results of its publisher's library.

    Attributes:
        load: arguments of `load_backbone`. image: from pixels (B, 3, S, S) to vectors. text: from tokens (T, N) to
            vectors; None for a model without a text side. tokens: rows from its tokenizer. dense: from pixels to
            patches (B, N, D), if its authors read those. parts: the modules that compute it.
    """

    load: dict[str, Any]
    image: Callable[[torch.Tensor], torch.Tensor]
    text: Callable[[torch.Tensor], torch.Tensor] | None
    tokens: torch.Tensor
    dense: Callable[[torch.Tensor], torch.Tensor] | None = None
    parts: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Row:
    """The way a publisher saves a model.

    Attributes:
        form: its name on the page. saved: its files on disk. libraries: packages that compute, "" for none but torch.
        make: writes it into a folder.
    """

    form: str
    saved: str
    libraries: str
    make: Callable[[Path], Saved]


@torch.no_grad()
def scaled(model: Any) -> Any:
    """Draw random weights for which features have size one."""
    for name, value in model.named_parameters():
        if value.ndim > 1:
            value.normal_(0, 1.5 / value.shape[-1] ** 0.5 if value.ndim == 2 else 1 / value[0].numel() ** 0.5)
        elif name.endswith("bias"):
            value.normal_(0, 0.2)
        elif name.endswith(("gamma", "gamma_1", "gamma_2", "lambda1")):  # layer scales, which start near zero
            value.uniform_(0.5, 1.5)
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.2)
    return model.eval()


def rows(end: int, pad: int, length: int = LENGTH) -> torch.Tensor:
    """Return three rows of words that end and are padded."""
    found = torch.full((3, length), pad)
    for index, row in enumerate(found):
        row[: 3 + index] = torch.randint(5, 100, (3 + index,))
        row[3 + index] = end
    return found


def tokenizer(folder: Path) -> None:
    """Write a WordPiece tokenizer of a few words, in the files of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog"])}
    made = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def own(config: dict[str, Any] | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a random CLIP of open_clip, and its tensors."""
    model = scaled(open_clip.CLIP(**(config or OWN)))
    return model, {key: value.clone() for key, value in model.state_dict().items()}


# Libraries in a package --------------------------------------------------------------------------------------


def hugging(make: Callable[[Any], Any], end: int, pad: int, length: int, folder: Path) -> Saved:
    """Build a model of transformers from the folder that it writes."""
    import transformers

    model = scaled(make(transformers))
    model.save_pretrained(folder)
    tokenizer(folder)
    masked = model.config.model_type not in ("clip", "siglip")

    def text(tokens: torch.Tensor) -> torch.Tensor:
        mask = {"attention_mask": (tokens != pad).long()} if masked else {}
        return pooled(model.get_text_features(input_ids=tokens, **mask))

    return Saved(
        {"name": str(folder)}, lambda x: pooled(model.get_image_features(pixel_values=x)), text, rows(end, pad, length)
    )


def pooled(found: Any) -> torch.Tensor:
    return getattr(found, "pooler_output", found)


def clip_of(transformers: Any, act: str = "quick_gelu", text_act: str | None = None) -> Any:
    config = transformers.CLIPConfig(
        vision_config={**VISION, "hidden_act": act},
        text_config={**TEXT, "hidden_act": text_act or act, "eos_token_id": 49407},
        projection_dim=EMBED,
    )
    return transformers.CLIPModel(config)


def metaclip(transformers: Any) -> Any:
    text = {**TEXT, "vocab_size": VOCABULARY, "eos_token_id": 2, "pad_token_id": 1}
    config = transformers.MetaClip2Config(
        vision_config={**VISION, "hidden_act": "gelu"}, text_config=text, projection_dim=EMBED
    )
    return transformers.MetaClip2Model(config)


def siglip(transformers: Any) -> Any:
    text = {**TEXT, "vocab_size": VOCABULARY, "projection_size": 64}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=text))


def tips(transformers: Any, gated: bool = False) -> Any:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
    vision = transformers.Tipsv2VisionConfig(hidden_size=64, mlp_ratio=3, use_swiglu_ffn=gated, **sizes)
    text = {**TEXT, "hidden_size": 64, "intermediate_size": 96, "vocab_size": VOCABULARY, "hidden_act": "relu"}
    return transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=vision.to_dict(), text_config=text))


def packed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Convert pixels (B, 3, H, W) for SigLIP 2 of any resolution: patches in a row, rows before colours."""
    grid = pixels.shape[2] // 8, pixels.shape[3] // 8
    cells = pixels.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).permute(0, 2, 4, 3, 5, 1)
    mask = torch.ones(len(pixels), grid[0] * grid[1], dtype=torch.long)
    return {
        "pixel_values": cells.flatten(3).flatten(1, 2),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([grid] * len(pixels)),
    }


def any_size(folder: Path) -> Saved:
    """SigLIP 2 of any resolution."""
    model = naflex(folder)
    return Saved(
        {"name": str(folder)},
        lambda x: pooled(model.get_image_features(**packed(x))),
        lambda x: pooled(model.get_text_features(input_ids=x)),
        rows(1, 1),
    )


def naflex(folder: Path) -> Any:
    """Return a random model of transformers, saved with a tokenizer."""
    import transformers

    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    text = {**TEXT, "vocab_size": VOCABULARY, "projection_size": 64, "hidden_size": 64, "num_attention_heads": 1}
    made = transformers.Siglip2Config(vision_config={**vision, "num_patches": (SIDE // 8) ** 2}, text_config=text)
    model = scaled(transformers.Siglip2Model(made))
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def fg_clip(folder: Path) -> Saved:
    """FG-CLIP 2: each patch asks in its own pool; words of boxes have their own layer. An image is a box."""
    from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead as Pool

    model = naflex(folder)
    pool, words = scaled(Pool(model.config.vision_config)), scaled(nn.Linear(64, 64))
    more = {f"dense_feature_head.{key}": x.clone() for key, x in pool.state_dict().items()}
    more |= {f"{kind}text_head.{key}": x.clone() for key, x in words.state_dict().items() for kind in ("box", "long")}
    more |= {f"text_model.embeddings.position_embedding_{kind}.weight": torch.ones(2, 64) for kind in ("res", "ori")}
    save_file({**{key: x.clone() for key, x in model.state_dict().items()}, **more}, folder / "model.safetensors")

    def dense(pixels: torch.Tensor) -> torch.Tensor:
        x = model.vision_model(**packed(pixels)).last_hidden_state
        h = pool.attention(x, x, x)[0]
        return h + pool.mlp(pool.layernorm(h))

    return Saved(
        {"name": str(folder)},
        lambda x: dense(x).mean(dim=1),
        lambda x: words(model.text_model(input_ids=x).last_hidden_state[:, -1]),
        rows(1, 1),
        dense,
        (model, pool),
    )


class TextBlock(nn.Module):
    """A block of dino.txt's text side; its projections have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(64), nn.LayerNorm(64)
        self.attention = nn.ModuleDict({"qkv": nn.Linear(64, 192, bias=False), "proj": nn.Linear(64, 64)})
        self.feed_forward = nn.ModuleDict({"fc1": nn.Linear(64, 256), "fc2": nn.Linear(256, 64)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attention["qkv"](self.attention_norm(x)).chunk(3, dim=-1)
        after = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        look = (q @ k.mT / 8).masked_fill(after, -math.inf).softmax(dim=-1)
        x = x + self.attention["proj"](look @ v)
        hidden = self.feed_forward["fc1"](self.ffn_norm(x))
        return x + self.feed_forward["fc2"](hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


class HeadBlock(nn.Module):
    """A block of dino.txt's vision head, with layer scales and a gated MLP."""

    def __init__(self, width: int = 64, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.rand(width) + 0.5}) for _ in range(2))
        self.mlp = nn.ModuleDict({"w12": nn.Linear(width, 96), "w3": nn.Linear(48, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.projected(x))
        look = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + self.ls1["gamma"] * self.attn["proj"]((look @ v).transpose(1, 2).flatten(2))
        return x + self.ls2["gamma"] * self.gated(self.norm2(x))

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.mlp["w12"](x).chunk(2, dim=-1)
        return self.mlp["w3"](gate / (1 + (-gate).exp()) * value)


DINO = {
    "2": ("vit_large_patch14_reg4_dinov2", {"img_size": SIDE, "patch_size": 8, "dynamic_img_size": True}),
    "3": ("vit_large_patch16_dinov3", {"img_size": 128, "patch_size": 8, "mlp_ratio": 2}),
}


def dino_txt(version: str, folder: Path) -> Saved:
    """dino.txt: a tower of timm, two blocks and a norm, and a text side; three files of DINOv2, two of DINOv3."""
    name, sizes = DINO[version]
    tower = scaled(timm.create_model(name, **sizes, embed_dim=64, depth=2, num_heads=1, num_classes=0))
    head, norm = scaled(nn.Sequential(HeadBlock(), HeadBlock())), scaled(nn.LayerNorm(64))
    words = scaled(nn.Sequential(TextBlock(), TextBlock()))
    table, places, last = torch.randn(49408, 64), torch.randn(LENGTH, 64), torch.randn(128, 64) / 8
    blocks = "block_list" if version == "2" else "blocks"
    vision = {f"{blocks}.{key}": x for key, x in head.state_dict().items()}
    vision |= {f"ln_final.{key}": x for key, x in norm.state_dict().items()}
    text = {f"backbone.blocks.{key}": x for key, x in words.state_dict().items()}
    text |= {"backbone.token_embedding.weight": table, "backbone.positional_embedding": places}
    text |= {"backbone.ln_final.weight": torch.ones(64), "backbone.ln_final.bias": torch.zeros(64)}
    text["head.linear_projection.weight"] = last
    torch.save(tower.state_dict(), folder / "tower.pth")
    if version == "2":
        torch.save(vision, folder / "vision_head.pth")
        torch.save(text, folder / "text_encoder.pth")
    else:  # its gate is a separate layer
        for key in [key for key in vision if ".w12." in key]:
            for number, part in enumerate(vision.pop(key).chunk(2), 1):
                vision[key.replace("w12", f"w{number}")] = part
        whole = {f"visual_model.head.{key}": x for key, x in vision.items()}
        whole |= {f"text_model.{key}": x for key, x in text.items()} | {"logit_scale": torch.tensor(4.0)}
        torch.save(whole, folder / "vision_head_and_text_encoder.pth")

    def dense(pixels: torch.Tensor) -> torch.Tensor:
        return norm(head(tower.forward_features(pixels)))[:, 5:]

    def read(tokens: torch.Tensor) -> torch.Tensor:
        x = nn.functional.layer_norm(words(table[tokens] + places), (64,))
        return (x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ last.mT)[:, 64:]

    return Saved(
        {"name": str(folder)}, lambda x: dense(x).mean(dim=1), read, rows(49407, 0), dense, (tower, head, norm)
    )


class Adaptor(nn.Module):
    """The second form of the MLP in RADIO's adaptors, with one inner step."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden))])
        self.final = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.fc1(x)
        norm, _, linear = self.final
        between, _, step = self.blocks[0]
        x = first + step(gelu(between(first)))
        return linear(gelu(norm(x)))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def radio(folder: Path) -> Saved:
    """RADIO in NVIDIA's names with adaptors for three teachers, beside the SigLIP of one of them."""
    import transformers

    text = {**TEXT, "vocab_size": VOCABULARY, "projection_size": 40}
    words = transformers.SiglipConfig(vision_config={**VISION, "hidden_size": 40}, text_config=text)
    siglip = scaled(transformers.SiglipModel(words))
    siglip.save_pretrained(folder / "siglip")
    tokenizer(folder / "siglip")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 8}
    made = transformers.RadioConfig(**sizes, max_img_size=128, num_cls_tokens=3, num_registers=1)
    model = scaled(transformers.RadioModel(made))
    model.make_preprocessor_external()
    heads = nn.ModuleList(scaled(Adaptor(64, 48, out)) for out in (24, 32, 40))
    own = model.state_dict()
    theirs = {
        "base_model.patch_generator.embedder.weight": own["embeddings.patch_projection.weight"],
        "base_model.patch_generator.pos_embed": own["embeddings.position_embedding"],
        "base_model.patch_generator.cls_token.token": own["embeddings.cls_register_token"],
        "input_conditioner.norm_mean": torch.tensor(made.norm_mean).view(3, 1, 1),
        "input_conditioner.norm_std": torch.tensor(made.norm_std).view(3, 1, 1),
        **{f"_heads.{key}": x for key, x in heads.state_dict().items()},
        **{f"_feature_projections.{key}": x for key, x in heads.state_dict().items()},
    }
    for key, value in own.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", key):
            name = match[2].replace("layer_scale", "ls").replace("lambda1", "gamma")
            name = name.replace("attention.o_proj", "attn.proj")
            if "k_proj" in name or "v_proj" in name:
                continue
            if "q_proj" in name:
                value = torch.cat([own[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
                name = name.replace("attention.q_proj", "attn.qkv")
            theirs[f"base_model.blocks.{match[1]}.{name}"] = value
    torch.save({"state_dict": theirs, "args": Namespace(model="vit_base_patch16_224")}, folder / "radio.pth.tar")
    return Saved(
        {"name": str(folder / "siglip"), "weights": folder / "radio.pth.tar"},
        lambda x: heads[2](model(pixel_values=x).last_hidden_state[:, 2]),
        lambda x: pooled(siglip.get_text_features(input_ids=x)),
        rows(1, 1),
        lambda x: heads[2](model(pixel_values=x).features),
        (model, heads),
    )


def chinese(transformers: Any) -> Any:
    text = {**TEXT, "vocab_size": VOCABULARY, "max_position_embeddings": 60}
    config = transformers.ChineseCLIPConfig(vision_config=VISION, text_config=text, projection_dim=EMBED)
    return transformers.ChineseCLIPModel(config)


def alt(transformers: Any) -> Any:
    text = {**TEXT, "vocab_size": VOCABULARY, "max_position_embeddings": 90, "project_dim": EMBED}
    config = transformers.AltCLIPConfig(vision_config=VISION, text_config=text, projection_dim=EMBED)
    return transformers.AltCLIPModel(config)


def vision_alone(folder: Path) -> Saved:
    """The image side of transformers' CLIP with text vectors from elsewhere, like LLM2CLIP's."""
    import transformers

    config = transformers.CLIPVisionConfig(**VISION, projection_dim=EMBED)
    model = scaled(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(folder)
    load = {"name": str(folder), "words": {"cat": torch.ones(EMBED)}}
    return Saved(load, lambda x: model(pixel_values=x).image_embeds, None, rows(1, 0))


def multilingual(folder: Path) -> Saved:
    """open_clip's CLIP with an XLM-R, whose sizes open_clip asks the hub for and `models convert` writes down."""
    import transformers

    from densevl.backbones.managing import convert

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    (folder / "words").mkdir()
    transformers.XLMRobertaConfig(**small, vocab_size=VOCABULARY, pad_token_id=1).save_pretrained(folder / "words")
    tokenizer(folder / "words")
    place = str(folder / "words")
    text = {"hf_model_name": place, "hf_tokenizer_name": place, "hf_model_pretrained": False, "context_length": LENGTH}
    config = {**OWN, "text_cfg": text}
    model = scaled(open_clip.CustomTextCLIP(**config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "x.safetensors")
    (folder / "x.json").write_text(json.dumps({**config, "custom_text": True}))
    convert(load_backbone(str(folder / "x.json"), folder / "x.safetensors", device="cpu"), folder / "out")
    for path in (folder / "words").iterdir():
        path.unlink()
    return Saved({"name": str(folder / "out")}, model.encode_image, model.encode_text, rows(2, 1))


def trained(folder: Path) -> Saved:
    """A checkpoint of open_clip's training program."""
    model, state = own()
    content = {"epoch": 3, "args": Namespace(lr=1e-3), "state_dict": {f"module.{key}": x for key, x in state.items()}}
    torch.save(content, folder / "epoch_3.pt")
    return Saved({"name": "auto", "weights": folder / "epoch_3.pt"}, model.encode_image, model.encode_text, rows(99, 0))


def cn_clip(resnet: bool, folder: Path) -> Saved:
    """Chinese-CLIP in its authors' package: a ViT, or the ResNet with its short text side."""
    from cn_clip.clip.model import CLIP

    layers, width = ([1, 1, 1, 1], 8) if resnet else (2, 64)
    model = scaled(
        CLIP(
            embed_dim=EMBED,
            image_resolution=SIDE,
            vision_layers=layers,
            vision_width=width,
            vision_patch_size=8,
            vocab_size=21128,
            text_attention_probs_dropout_prob=0.1,
            text_hidden_act="gelu",
            text_hidden_dropout_prob=0.1,
            text_hidden_size=64,
            text_initializer_range=0.02,
            text_intermediate_size=96,
            text_max_position_embeddings=60,
            text_num_attention_heads=1,
            text_num_hidden_layers=2,
            text_type_vocab_size=2,
        )
    )
    torch.save({"state_dict": {f"module.{key}": x for key, x in model.state_dict().items()}}, folder / "clip_cn.pt")
    (folder / "vocab.txt").write_bytes(vocabulary().read_bytes())
    return Saved(
        {"name": "auto", "weights": folder / "clip_cn.pt"}, model.encode_image, model.encode_text, rows(102, 0)
    )


def vocabulary() -> Path:
    """The vocabulary of Chinese-CLIP, from its authors' package."""
    import cn_clip.clip

    return Path(cn_clip.clip.__file__).with_name("vocab.txt")


def lora(folder: Path) -> Saved:
    """LoRA as peft saves it, beside the folder of its base; merged here by its definition."""
    import transformers

    (folder / "base").mkdir()
    base = scaled(clip_of(transformers))
    base.save_pretrained(folder / "base")
    adapter, rank, alpha = {}, 3, 6
    for name, module in base.named_modules():
        if name.endswith(("q_proj", "fc1")):
            low, high = torch.randn(rank, module.in_features) / 8, torch.randn(module.out_features, rank) / 8
            adapter |= {f"base_model.model.{name}.lora_A.weight": low, f"base_model.model.{name}.lora_B.weight": high}
            module.weight.data += (alpha / rank) * high @ low
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "fc1"], "bias": "none"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(told))
    return Saved(
        {"name": str(folder / "base"), "weights": folder / "adapter"},
        lambda x: pooled(base.get_image_features(pixel_values=x)),
        lambda tokens: pooled(base.get_text_features(input_ids=tokens)),
        rows(49407, 0),
    )


# Programs without a package --------------------------------------------------------------------------------------

OPENAI = {"input_resolution": SIDE, "context_length": LENGTH, "vocab_size": 49408}


class Program(nn.Module):
    """The form of OpenAI's files: a scripted model with three numbers beside its weights."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            part: nn.Module = self
            *above, last = key.split(".")
            for name in above:
                if not hasattr(part, name):
                    part.add_module(name, nn.Module())
                part = getattr(part, name)
            part.register_buffer(last, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai(config: dict[str, Any], folder: Path) -> Saved:
    """OpenAI's TorchScript archive."""
    model, state = own({**config, "quick_gelu": True})
    numbers = {key: torch.tensor(value) for key, value in OPENAI.items()}
    torch.jit.save(torch.jit.script(Program({**state, **numbers})), str(folder / "x.pt"))
    return Saved({"name": "auto", "weights": folder / "x.pt"}, model.encode_image, model.encode_text, rows(99, 0))


def eva_names(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename timm's names of an EVA-02 to EVA's own, and add the tables of rotary positions that its files hold."""
    theirs = {}
    for key, value in state.items():
        name = key.replace("attn.norm.", "attn.inner_attn_ln.").replace("mlp.norm.", "mlp.ffn_ln.")
        name = re.sub(r"attn\.([qv])_proj\.bias", r"attn.\1_bias", name)
        for old, new in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
            name = name.replace(f"mlp.{old}.", f"mlp.{new}.")
        theirs[prefix + name] = value
    tables = ("rope.freqs_cos", "blocks.0.attn.rope.freqs_sin")
    return theirs | {prefix + name: torch.ones(16, 12) for name in tables}


def eva(folder: Path, *, clipself: bool = False) -> Saved:
    """EVA-02-CLIP with its program's names; checkpoints of CLIPSelf and DeCLIP hold that in a dict."""
    text = scaled(open_clip.transformer.TextTransformer(**WORDS, output_dim=EMBED))
    vision = scaled(timm.create_model("eva02_base_patch16_clip_224", num_classes=EMBED, **EVA))
    state = eva_names(vision.state_dict(), "visual.") | {f"text.{key}": x for key, x in text.state_dict().items()}
    state["logit_scale"] = torch.tensor(4.6)
    content = {"epoch": 1, "name": "clipself", "state_dict": state, "optimizer": {}} if clipself else state
    torch.save(content, folder / "x.pt")
    return Saved({"name": "auto", "weights": folder / "x.pt"}, vision, text, rows(99, 0))


def slip(folder: Path) -> Saved:
    """SLIP's program: timm's ViT and open_clip's text side, each under its name."""
    vision = timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0, global_pool="token"
    )
    vision, (model, state) = scaled(vision), own({**OWN, "quick_gelu": True})
    projection = torch.randn(64, EMBED) / 8
    theirs = {f"visual.{key}": value for key, value in vision.state_dict().items()} | {"image_projection": projection}
    theirs |= {key: value for key, value in state.items() if not key.startswith("visual.")}
    theirs |= {"image_mlp.layer1.weight": torch.ones(3)}
    torch.save({"state_dict": {f"module.{key}": x for key, x in theirs.items()}, "epoch": 1}, folder / "x.pt")
    load = {"name": "auto", "weights": folder / "x.pt"}
    return Saved(load, lambda x: vision(x) @ projection, model.encode_text, rows(99, 0))


class Differential(nn.Module):
    """Differential attention as in its paper (Ye et al., ICLR 2025, eq. 1 to 3), one head at a time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.head = heads, width // heads
        self.diff_norm = nn.Module()
        self.diff_norm.weight = nn.Parameter(torch.rand(2 * self.head) + 0.5)
        for name in ("q1", "k1", "q2", "k2"):
            setattr(self, f"lambda_{name}", nn.Parameter(torch.randn(self.head) * 0.3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        weight = math.exp(self.lambda_q1 @ self.lambda_k1) - math.exp(self.lambda_q2 @ self.lambda_k2) + 0.8
        found = []
        for pair in range(self.heads // 2):
            maps = []
            for head in (2 * pair, 2 * pair + 1):
                part = slice(head * self.head, (head + 1) * self.head)
                scores = q[..., part] @ k[..., part].mT / math.sqrt(self.head)
                maps.append((scores if mask is None else scores + mask).softmax(-1))
            y = (maps[0] - weight * maps[1]) @ v[..., 2 * pair * self.head : 2 * (pair + 1) * self.head]
            y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.diff_norm.weight
            found.append(y * 0.2)
        return self.out_proj(torch.cat(found, dim=-1))


def diffclip(folder: Path) -> Saved:
    """DiffCLIP: SLIP's form with differential attention, QuickGELU in the text side."""
    vision = timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0, norm_layer=nn.LayerNorm
    )
    for block in vision.blocks:
        block.attn = Differential(64, 4)
    vision, projection = scaled(vision), torch.randn(64, EMBED) / 8
    model, state = own({**OWN, "quick_gelu": True})
    blocks = [scaled(Differential(64, 4)) for _ in range(2)]
    theirs = {f"visual.{key}": value for key, value in vision.state_dict().items()} | {"image_projection": projection}
    theirs |= {key: x for key, x in state.items() if not key.startswith("visual.") and ".attn." not in key}
    for index, block in enumerate(blocks):
        theirs |= {f"transformer.resblocks.{index}.attn.{key}": x for key, x in block.state_dict().items()}
    torch.save({"state_dict": {f"module.{key}": x for key, x in theirs.items()}}, folder / "x.pt")
    mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)

    def text(tokens: torch.Tensor) -> torch.Tensor:
        x = model.token_embedding(tokens) + model.positional_embedding
        for block, attention in zip(model.transformer.resblocks, blocks, strict=True):
            x = x + attention(block.ln_1(x), mask)
            x = x + block.mlp(block.ln_2(x))
        return model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection

    load = {"name": "auto", "weights": folder / "x.pt"}
    return Saved(load, lambda x: vision(x) @ projection, text, rows(99, 0))


def tower(folder: Path) -> Saved:
    """FARE and TeCoA: an image tower alone, beside a folder with the model from which it was trained."""
    base, state = own({**OWN, "quick_gelu": True})
    model, _ = own({**OWN, "quick_gelu": True})
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**OWN, "quick_gelu": True}}))
    torch.save(model.visual.state_dict(), folder / "fare.pt")
    load = {"name": str(folder), "weights": folder / "fare.pt"}
    return Saved(load, model.encode_image, base.encode_text, rows(99, 0))


def alpha(folder: Path) -> Saved:
    """Alpha-CLIP with an alpha channel of 1: its patch embedding adds a second convolution."""
    model, state = own({**OWN, "quick_gelu": True})
    theirs = {key.replace("in_proj_", "in_proj."): x for key, x in state.items()}
    conv = nn.Conv2d(1, 64, 8, stride=8, bias=False)
    theirs["visual.conv1_alpha.weight"] = conv.weight.detach().clone()
    torch.save(theirs, folder / "x.pt")
    plain = model.visual.conv1

    class Both(nn.Module):
        weight = plain.weight

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return plain(pixels) + conv((torch.ones_like(pixels[:, :1]) - 0.5) / 0.26)

    model.visual.conv1 = Both()
    load = {"name": "auto", "weights": folder / "x.pt", "activation": "quick_gelu"}
    return Saved(load, model.encode_image, model.encode_text, rows(99, 0))


def long_clip(folder: Path) -> Saved:
    """Long-CLIP: a second table of positions from the 21st token on."""
    model, state = own({**OWN, "text_cfg": {**WORDS, "context_length": 40}, "quick_gelu": True})
    state["positional_embedding_res"] = torch.randn(40, 64)
    torch.save(state, folder / "x.pt")
    first, rest = state["positional_embedding"], state["positional_embedding_res"]
    keep = (torch.arange(40) < 20)[:, None]
    model.positional_embedding.data = first * keep + rest * ~keep
    load = {"name": "auto", "weights": folder / "x.pt", "activation": "quick_gelu"}
    tokens = torch.randint(5, 90, (3, 40)).index_fill(1, torch.tensor([30]), 99)
    return Saved(load, model.encode_image, model.encode_text, tokens)


def pmc_clip(folder: Path) -> Saved:
    """PMC-CLIP: CLIP's ResNet, a BERT that looks at padding, and a module that joins both, which is left out."""
    import transformers

    image, _ = own(RESNET)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    bert = scaled(transformers.BertModel(transformers.BertConfig(**small, vocab_size=VOCABULARY)))
    projection = torch.randn(64, EMBED) / 8
    state = {f"visual.{key}": x for key, x in image.visual.state_dict().items()}
    state |= {f"text_encoder.{key}": x for key, x in bert.state_dict().items()} | {"text_projection": projection}
    state |= {"logit_scale": torch.tensor(4.6), "img_special_token": torch.ones(1, 1, EMBED)}
    state |= {"fusion_module.resblocks.0.ln_1.weight": torch.ones(64), "positional_embedding": torch.ones(77, 64)}
    state |= {"ln_final.weight": torch.ones(64), "mlm_projection": torch.ones(64, VOCABULARY)}
    torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}}, folder / "checkpoint.pt")
    tokenizer(folder)
    load = {"name": "auto", "weights": folder / "checkpoint.pt"}
    return Saved(load, image.encode_image, lambda x: bert(input_ids=x).last_hidden_state[:, 0] @ projection, rows(3, 0))


def jina_vision() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = scaled(timm.create_model("eva02_base_patch16_clip_224", num_classes=0, **EVA))
    return vision, eva_names(vision.state_dict(), "vision_model.")


def jina_v1(folder: Path) -> Saved:
    """The image side of jina-clip v1; its text side is in no library, so words come from elsewhere."""
    vision, state = jina_vision()
    state |= {"text_model.transformer.encoder.layers.0.mlp.gated_layers.weight": torch.ones(2, 2)}
    save_file({**state, "logit_scale": torch.tensor(4.6)}, folder / "model.safetensors")
    config = {"model_type": "jina_clip", "vision_config": {"head_width": 64}, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return Saved({"name": str(folder), "words": {"cat": torch.ones(128)}}, vision, None, rows(2, 1))


def jina_v2(width: int | None, folder: Path) -> Saved:
    """jina-clip v2: an XLM-R with rotary positions; the low-rank changes of its task lie beside its weights."""
    import transformers

    vision, state = jina_vision()
    small = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = transformers.JinaEmbeddingsV3Config(**small, vocab_size=VOCABULARY, max_position_embeddings=64)
    text = scaled(transformers.JinaEmbeddingsV3Model(made, add_pooling_layer=False))
    rank, scale = 4, 8 / 4
    theirs: dict[str, torch.Tensor] = {}
    for key, value in text.state_dict().items():
        name = key.replace("embeddings.LayerNorm", "emb_ln").replace("self_attn.o_proj", "mixer.out_proj")
        name = name.replace("post_attention_layernorm", "norm1").replace("post_mlp_layernorm", "norm2")
        name = re.sub(r"^layers", "encoder.layers", name)
        if match := re.fullmatch(r"(.*)self_attn\.([qkv])_proj\.(.*)", name):
            if match[2] != "q":
                continue
            parts = [text.state_dict()[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, value = f"{match[1]}mixer.Wqkv.{match[3]}", torch.cat(parts)
        theirs[name] = value.clone()
    changed = {}
    for name, value in theirs.items():
        stem = f"text_model.transformer.roberta.{name}"
        if name.endswith("weight") and value.ndim == 2:
            table = "embeddings" in name
            low = torch.randn(2, value.shape[0], rank) / 8 if table else torch.randn(2, rank, value.shape[1]) / 8
            high = torch.randn(2, rank, value.shape[1]) / 8 if table else torch.randn(2, value.shape[0], rank) / 8
            change = low[1] @ high[1] if table else high[1] @ low[1]
            stem = f"{stem.removesuffix('weight')}parametrizations.weight."
            changed |= {f"{stem}original": value - scale * change, f"{stem}0.lora_A": low, f"{stem}0.lora_B": high}
        else:
            changed[stem] = value
    state |= {"logit_scale": torch.tensor(4.6), **changed}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    sizes = {"lora_adaptations": ["a", "retrieval.query"], "lora_rank": rank, "lora_alpha": 8}
    config = {
        "model_type": "jina_clip",
        "auto_map": {"AutoConfig": "jinaai/jina-clip-implementation--configuration_clip.JinaCLIPConfig"},
        "matryoshka_dimensions": [8, 16, 128],
        "vision_config": {"head_width": 64},
        "text_config": {"default_lora_task": "retrieval.query", "hf_model_config_kwargs": sizes},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)

    def mean(tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != 1).long()
        states = text(input_ids=tokens, attention_mask=mask).last_hidden_state
        return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))[:, :width]

    load = {"name": str(folder), "truncate_dim": width}
    return Saved(load, lambda x: vision(x)[:, :width], mean, rows(2, 1))


CLIP = "CLIP, Safe-CLIP, FashionCLIP, StreetCLIP, PLIP, ..."
ROWS = {
    "clip": Row(CLIP, "folder of transformers", "transformers", partial(hugging, clip_of, 49407, 0, LENGTH)),
    "clip-gelu": Row(
        "the same, GELU", "folder", "transformers", partial(hugging, partial(clip_of, act="gelu"), 49407, 0, LENGTH)
    ),
    "clip-two": Row(
        "the same, of two activations",
        "folder",
        "transformers",
        partial(hugging, partial(clip_of, act="gelu", text_act="quick_gelu"), 49407, 0, LENGTH),
    ),
    "metaclip": Row("MetaCLIP 2", "folder", "transformers", partial(hugging, metaclip, 2, 1, LENGTH)),
    "siglip": Row("SigLIP, SigLIP 2 of one size", "folder", "transformers", partial(hugging, siglip, 1, 1, LENGTH)),
    "tipsv2": Row("TIPSv2", "folder", "transformers", partial(hugging, tips, 1, 0, LENGTH)),
    "tipsv2-gated": Row(
        "TIPSv2 g", "folder", "transformers", partial(hugging, partial(tips, gated=True), 1, 0, LENGTH)
    ),
    "siglip2-any": Row("SigLIP 2 of any resolution", "folder", "transformers", any_size),
    "fgclip2": Row("FG-CLIP 2, words of boxes", "folder", "transformers", fg_clip),
    "dinotxt-2": Row("dino.txt on DINOv2", "folder of three `.pth`", "timm", partial(dino_txt, "2")),
    "dinotxt-3": Row("dino.txt on DINOv3", "folder of two `.pth`", "timm", partial(dino_txt, "3")),
    "radio": Row("RADIO, words of SigLIP 2", "`.pth.tar` beside a folder", "transformers", radio),
    "chinese": Row("Chinese-CLIP", "folder", "transformers", partial(hugging, chinese, 102, 0, LENGTH)),
    "alt": Row("AltCLIP", "folder", "transformers", partial(hugging, alt, 2, 1, LENGTH)),
    "vision": Row("the image side of CLIP; LLM2CLIP's form", "folder, text vectors", "transformers", vision_alone),
    "lora": Row("LoRA", "peft's folder, beside its base", "transformers", lora),
    "cn_clip": Row("Chinese-CLIP, ViT", "its authors' `.pt`", "cn-clip", partial(cn_clip, False)),
    "cn_clip-resnet": Row("Chinese-CLIP, RN50", "its authors' `.pt`", "cn-clip", partial(cn_clip, True)),
    "open_clip": Row("open_clip, TiC-CLIP", "training checkpoint", "open_clip_torch", trained),
    "multilingual": Row("XLM-R, NLLB of open_clip", "converted folder", "open_clip_torch", multilingual),
    "openai": Row("CLIP of OpenAI, ViT", "TorchScript", "open_clip_torch", partial(openai, OWN)),
    "openai-resnet": Row("CLIP of OpenAI, ResNet", "TorchScript", "open_clip_torch", partial(openai, RESNET)),
    "long": Row("Long-CLIP", "`.pt`", "open_clip_torch", long_clip),
    "alpha": Row("Alpha-CLIP, alpha of 1", "`.pt`", "open_clip_torch", alpha),
    "tower": Row("FARE, TeCoA", "image tower beside its base", "open_clip_torch", tower),
    "slip": Row("SLIP, LaCLIP, SynthCLIP", "training checkpoint", "timm", slip),
    "diffclip": Row("DiffCLIP", "training checkpoint", "timm", diffclip),
    "eva": Row("EVA-02-CLIP", "`.pt` in EVA's names", "timm", eva),
    "clipself": Row("CLIPSelf, DeCLIP", "training checkpoint", "timm", partial(eva, clipself=True)),
    "pmc": Row("PMC-CLIP", "training checkpoint", "transformers", pmc_clip),
    "jina-v1": Row("jina-clip v1, image side", "folder, text vectors", "timm", jina_v1),
    "jina-v2": Row("jina-clip v2", "folder", "timm transformers", partial(jina_v2, None)),
    "jina-v2-cut": Row("the same, its first 16 numbers", "folder", "timm transformers", partial(jina_v2, 16)),
}


@torch.no_grad()
def differences(saved: Saved) -> tuple[float, float | None]:
    """Return the largest difference of image and of text vectors from the publisher's."""
    backbone: Any = load_backbone(**saved.load, device="cpu")
    pixels = torch.randn(2, 3, *backbone.tower.image_size)
    image = float((backbone.encode_image(pixels) - saved.image(pixels)).abs().max())
    if saved.text is None:
        return image, None
    return image, float((backbone.model.encode_text(saved.tokens) - saved.text(saved.tokens)).abs().max())


def table() -> str:
    """Return the table of all rows whose libraries are installed."""
    lines = ["| form | as | image | text | computed by |", "|---|---|---|---|---|"]
    for index, row in enumerate(ROWS.values()):
        torch.manual_seed(index)
        if not all(find_spec(name.replace("-", "_").removesuffix("_torch")) for name in row.libraries.split()):
            raise SystemExit(f"{row.form}: needs {row.libraries}")
        with tempfile.TemporaryDirectory() as folder:
            image, text = differences(row.make(Path(folder)))
        shown = ", ".join(f"{name.removesuffix('_torch')} {version(name)}" for name in row.libraries.split())
        lines.append(f"| {row.form} | {row.saved} | {image:.1e} | {'' if text is None else f'{text:.1e}'} | {shown} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    made = table()
    if "--write" in sys.argv[1:]:
        page = replaced(PAGE.read_text(encoding="utf-8"), f"{START}\n{made}\n{END_MARK}", START, END_MARK)
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(made)
