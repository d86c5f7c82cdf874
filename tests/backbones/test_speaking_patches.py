"""Models whose patches speak, against the publishing library's own modules: their read-out, on grids of any shape."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from densevl import Segmenter, load_backbone, load_proxy
from densevl.backbones.managing import convert
from densevl.errors import RecipeError, WeightsError
from tests.conftest import close
from tools.forms import ROWS, hugging, scaled, tips

transformers = pytest.importorskip("transformers", reason="the publishing library")


@pytest.fixture(scope="module", params=[False, True], ids=["mlp", "gated"])
def saved(request, tmp_path_factory):
    """A random TIPSv2 in a folder: ours and theirs."""
    folder: Path = tmp_path_factory.mktemp("tips")
    torch.manual_seed(3)
    hugging(partial(tips, gated=request.param), 1, 0, 16, folder)
    theirs = transformers.Tipsv2Model.from_pretrained(folder).eval()
    return load_backbone(str(folder), device="cpu"), theirs.vision_model


@pytest.mark.parametrize("size", [(32, 32), (24, 56), (80, 40)], ids=str)
@torch.no_grad()
def test_tipsv2_is_read_as_its_authors_do(saved, size) -> None:
    """The last block keeps its skip connection and MLP, and each patch looks at itself alone."""
    ours, theirs = saved
    pixels = torch.rand(2, 3, *size)
    x = theirs.embeddings(pixels)
    for layer in theirs.encoder.layer[:-1]:
        x = layer(x)
    last = theirs.encoder.layer[-1]
    y = x + last.layer_scale1(last.attention.o_proj(last.attention.v_proj(last.norm1(x))))
    y = theirs.layernorm(y + last.layer_scale2(last.mlp(last.norm2(y))))[:, 2:]
    found = ours.encode_dense(pixels)
    assert ours.default_recipe == "maskclip"
    close(found.features.flatten(2).mT, y)
    whole = ours.encode_dense(pixels, "vanilla")
    close(whole.features.flatten(2).mT, theirs(pixel_values=pixels).last_hidden_state[:, 2:])
    if size == (32, 32):
        close(ours.encode_image(pixels), whole.cls)


def test_tipsv2_has_its_authors_prompts_windows_and_pixels(saved) -> None:
    ours, _ = saved
    segment = Segmenter(ours)
    assert (segment.protocol.short_side, segment.protocol.crop, segment.protocol.stride) == (448, 448, 336)
    assert {"a photo of many {}.", "a photo of {}s.", "itap of a {}."} < set(segment.templates)
    assert len(segment.templates) == 9
    assert (ours.mean, ours.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert ours.logit_scale == pytest.approx(1 / 0.005065968260169029, rel=1e-5)


def test_positions_are_the_models_own_unless_others_are_asked_for(saved) -> None:
    ours, _ = saved
    assert ours.resolve("sclip").position_rule == "bilinear_antialias"
    assert ours.resolve("sclip", position_rule="size").position_rule == "size"


# Heads behind a tower: dino.txt, FG-CLIP 2, RADIO ---------------------------------------------------------------------

GRIDS = [(32, 32), (24, 56), (80, 40)]
FORMS = ["dinotxt-2", "dinotxt-3", "fgclip2", "radio"]


@pytest.fixture(scope="module", params=FORMS)
def written(request, tmp_path_factory):
    """A random model in its publisher's files: ours and theirs, both in float64."""
    torch.manual_seed(3)
    theirs = ROWS[request.param].make(tmp_path_factory.mktemp("form"))
    ours = load_backbone(**theirs.load, device="cpu")
    ours.model.double()
    for part in theirs.parts:
        part.double()
    return ours, theirs


@pytest.mark.parametrize("size", GRIDS, ids=str)
@torch.no_grad()
def test_patches_are_read_by_the_head_that_was_trained_for_them(written, size) -> None:
    """On grids of any shape; only resized positions are of single precision."""
    ours, theirs = written
    pixels = torch.rand(2, 3, *size).double()
    dense = ours.encode_dense(pixels, "vanilla")
    torch.testing.assert_close(dense.features.flatten(2).mT, theirs.dense(pixels), atol=3e-6, rtol=0)
    assert dense.features.shape[1:] == (ours.embed_dim, size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_the_image_is_read_in_the_space_of_its_patches(written) -> None:
    ours, theirs = written
    pixels = torch.rand(1, 3, *ours.tower.image_size).double()
    found = ours.encode_image(pixels)
    torch.testing.assert_close(found, theirs.image(pixels), atol=3e-6, rtol=0)
    torch.testing.assert_close(found, ours.encode_dense(pixels, "vanilla").cls, atol=1e-12, rtol=0)


READ = {
    "dino.txt on DINOv2": ("vanilla", 518, 392, 196),
    "dino.txt on DINOv3": ("vanilla", 512, 384, 192),
    "FG-CLIP 2": ("vanilla", 448, None, None),
    "RADIO with words": ("radseg", 672, 336, 224),
}


def test_each_has_its_authors_readout_which_survives_conversion(written, tmp_path) -> None:
    ours, theirs = written
    again = load_backbone(**theirs.load, device="cpu")
    convert(again, tmp_path)
    for model in (ours, load_backbone(str(tmp_path), device="cpu")):
        told = model.protocol
        name = model.reading["form"]
        assert (model.default_recipe, told.short_side, told.crop, told.stride) == READ[name]
        assert model.resolve(None).position_rule == ours.resolve(None).position_rule
        assert model.guesses == ()
    pixels = torch.rand(1, 3, 24, 56)
    assert torch.equal(again.encode_dense(pixels).features, model.encode_dense(pixels).features)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_lowered_heads_are_near_the_trained_ones(written, precision) -> None:
    _, theirs = written
    pixels = torch.rand(1, 3, 32, 32)
    full, low = (load_backbone(**theirs.load, device="cpu", precision=p) for p in ("float32", precision))
    want, got = (model.encode_dense(pixels).features for model in (full, low))
    assert (got - want).norm() / want.norm() < 0.1


# dino.txt -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinotxt")
    torch.manual_seed(4)
    return folder, ROWS["dinotxt-2"].make(folder)


@torch.no_grad()
def test_recipes_rewire_the_heads_last_block(dino) -> None:
    """Its own value, skip connection and gated MLP kept; and no more blocks than the head has."""
    _, theirs = dino
    ours = load_backbone(**theirs.load, device="cpu")
    tower, head, norm = theirs.parts
    pixels = torch.rand(1, 3, 24, 56)
    x = head[0](tower.forward_features(pixels))
    block = head[1]
    x = x + block.ls1["gamma"] * block.attn["proj"](block.projected(x)[2])
    want = norm(x + block.ls2["gamma"] * block.gated(block.norm2(x)))[:, 5:]
    close(ours.encode_dense(pixels, "maskclip").features.flatten(2).mT, want)
    with pytest.raises(RecipeError, match="'gem' rewires 6 blocks, the tower has 2"):
        ours.encode_dense(pixels, "gem")


@torch.no_grad()
def test_words_are_the_half_that_patches_were_trained_with(dino) -> None:
    folder, theirs = dino
    ours = load_backbone(**theirs.load, device="cpu")
    first = load_backbone(**theirs.load, device="cpu")
    state = torch.load(folder / "text_encoder.pth")
    last = state["head.linear_projection.weight"]
    assert last.shape[0] == 2 * ours.embed_dim
    assert torch.equal(ours.model.text.text_projection, last[len(last) // 2 :].T)
    assert type(ours.tokenizer).__name__ == "SimpleTokenizer"
    assert first.text_fingerprint == ours.text_fingerprint


def meta_names(folder: Path) -> None:
    """The tower as Meta's hub has it: the class's position in the table, and a mask token."""
    state = torch.load(folder / "tower.pth")
    places = torch.cat([torch.full((1, 1, 64), 0.25), state["pos_embed"]], dim=1)
    state |= {"pos_embed": places, "cls_token": state["cls_token"] - 0.25, "mask_token": torch.zeros(1, 64)}
    state["register_tokens"] = state.pop("reg_token")
    torch.save(state, folder / "tower.pth")


def test_its_tower_is_read_in_metas_names(dino, tmp_path) -> None:
    folder, _ = dino
    for file in folder.glob("*.pth"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    meta_names(tmp_path)
    pixels = torch.rand(1, 3, 24, 56)
    ours, other = (load_backbone(str(place), device="cpu") for place in (folder, tmp_path))
    assert other.reading["form"] == "dino.txt on DINOv2"
    close(other.encode_dense(pixels).features, ours.encode_dense(pixels).features)


@torch.no_grad()
def test_its_tower_is_that_of_transformers(dino, tmp_path) -> None:
    folder, theirs = dino
    _, head, norm = theirs.parts
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 32, "patch_size": 8}
    tower = scaled(transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes)))
    tower.save_pretrained(tmp_path)
    for name in ("vision_head.pth", "text_encoder.pth"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    ours = load_backbone(str(tmp_path), device="cpu")
    for size in GRIDS:
        pixels = torch.rand(1, 3, *size)
        want = norm(head(tower(pixel_values=pixels).last_hidden_state))[:, 5:]
        close(ours.encode_dense(pixels).features.flatten(2).mT, want)


PARTS = {"vision_head": "vision head", "text_encoder": "text encoder", "tower": "tower"}


@pytest.mark.parametrize("absent", PARTS)
def test_a_missing_part_is_named(dino, tmp_path, absent) -> None:
    folder, _ = dino
    for name in PARTS.keys() - {absent}:
        (tmp_path / f"{name}.pth").write_bytes((folder / f"{name}.pth").read_bytes())
    with pytest.raises(WeightsError, match=f"a part of dino.txt without its {PARTS[absent]}: put the files"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_part_alone_is_named_and_two_of_a_kind_are_refused(dino, tmp_path) -> None:
    folder, _ = dino
    for name in ("vision_head", "text_encoder"):
        with pytest.raises(WeightsError, match="without its tower: put the files of DINO"):
            load_backbone(str(folder / f"{name}.pth"), device="cpu")
    with pytest.raises(WeightsError, match="without its text encoder"):
        load_backbone(str(folder / "tower.pth"), folder / "vision_head.pth", device="cpu")
    for name in ("vision_head", "a", "b"):
        source = "vision_head" if name == "vision_head" else "tower"
        (tmp_path / f"{name}.pth").write_bytes((folder / f"{source}.pth").read_bytes())
    with pytest.raises(WeightsError, match="a second file of the same part"):
        load_backbone(str(tmp_path), device="cpu")


def test_weights_that_a_head_lacks_are_not_made_up(dino, tmp_path) -> None:
    """Its authors' own loader of DINOv3 leaves what is missing at random."""
    folder, _ = dino
    for file in folder.glob("*.pth"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = torch.load(tmp_path / "vision_head.pth")
    del state["block_list.1.ls2.gamma"]
    torch.save(state, tmp_path / "vision_head.pth")
    with pytest.raises(WeightsError, match=r"visual\.blocks\.1\.ls2\.gamma"):
        load_backbone(str(tmp_path), device="cpu")


def test_the_file_of_dinov3_goes_beside_its_tower(tmp_path) -> None:
    torch.manual_seed(5)
    theirs = ROWS["dinotxt-3"].make(tmp_path)
    beside = load_backbone(str(tmp_path / "tower.pth"), tmp_path / "vision_head_and_text_encoder.pth", device="cpu")
    whole = load_backbone(**theirs.load, device="cpu")
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(beside.encode_dense(pixels).features, whole.encode_dense(pixels).features)
    assert beside.logit_scale == pytest.approx(math.exp(4.0))


@pytest.fixture(scope="module")
def dino3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinotxt3")
    torch.manual_seed(5)
    ROWS["dinotxt-3"].make(folder)
    return folder


def copied(source: Path, folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((source / name).read_bytes())


BOTH = "vision_head_and_text_encoder.pth"


def test_parts_of_two_versions_do_not_mix(dino, dino3, tmp_path) -> None:
    """Their shapes fit each other."""
    folder, _ = dino
    for index, (tower, rest, names) in enumerate(
        [(folder, dino3, [BOTH]), (dino3, folder, ["vision_head.pth", "text_encoder.pth"])]
    ):
        mixed = tmp_path / str(index)
        mixed.mkdir()
        copied(tower, mixed, "tower.pth")
        copied(rest, mixed, *names)
        with pytest.raises(WeightsError, match="parts that do not belong together"):
            load_backbone(str(mixed), device="cpu")


@torch.no_grad()
def test_trained_biases_of_dinov3_are_kept(dino3, tmp_path) -> None:
    """Meta's names with a mask, those of timm and those of transformers; against timm's own tower."""
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 128, "patch_size": 8, "mlp_ratio": 2, "embed_dim": 64, "depth": 2, "num_heads": 1}
    tower = timm.create_model("vit_large_patch16_dinov3_qkvb", **sizes, num_classes=0).eval()
    plain = torch.load(dino3 / "tower.pth")
    biases = {key: 0.3 * torch.randn(64) for key in tower.state_dict() if key.endswith(("attn.q_bias", "attn.v_bias"))}
    tower.load_state_dict({**plain, **biases})
    meta = {key.replace("gamma_", "ls").replace("reg_token", "storage_tokens"): x for key, x in plain.items()}
    meta = {re.sub(r"\.ls([12])$", r".ls\1.gamma", key): x for key, x in meta.items()}
    for index in range(2):
        q, v = (biases[f"blocks.{index}.attn.{which}_bias"] for which in "qv")
        meta[f"blocks.{index}.attn.qkv.bias"] = torch.cat([q, torch.ones(64), v])
        meta[f"blocks.{index}.attn.qkv.bias_mask"] = torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)])
    hugging = {}
    for key, x in meta.items():
        if key.endswith("qkv.bias_mask"):
            continue
        key = key.replace("blocks.", "layer.").replace("mlp.fc1", "mlp.up_proj").replace("mlp.fc2", "mlp.down_proj")
        key = key.replace("attn.proj", "attention.o_proj").replace("storage_tokens", "embeddings.register_tokens")
        key = re.sub(r"ls([12])\.gamma", r"layer_scale\1.lambda1", key).replace("cls_token", "embeddings.cls_token")
        key = key.replace("patch_embed.proj", "embeddings.patch_embeddings")
        for place, part in enumerate(x.chunk(3)) if ".attn.qkv." in key else ():
            if place != 1 or key.endswith("weight"):
                hugging[key.replace("attn.qkv", f"attention.{'qkv'[place]}_proj")] = part.clone()
        hugging |= {key: x} if ".attn.qkv." not in key else {}
    pixels, found = torch.rand(1, 3, 24, 56), []
    copied(dino3, tmp_path, BOTH)
    for state in (tower.state_dict(), meta, hugging, {"teacher": {f"backbone.{key}": x for key, x in meta.items()}}):
        torch.save(state, tmp_path / "tower.PTH")
        ours = load_backbone(str(tmp_path), device="cpu")
        found.append(ours.encode_dense(pixels).features)
        close(ours.model.visual.trunk.forward_features(pixels), tower.forward_features(pixels))
        close(found[-1], found[0])
    without = load_backbone(str(dino3), device="cpu").encode_dense(pixels).features
    assert not torch.allclose(found[0], without, atol=1e-3)
    for key in [key for key in meta if key.endswith("bias_mask")]:
        del meta[key]
    torch.save(meta, tmp_path / "tower.PTH")
    with pytest.raises(WeightsError, match="whose keys have a bias"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_foreign_file_beside_a_dinotxt_is_named(dino, tmp_path) -> None:
    folder, _ = dino
    copied(folder, tmp_path, "tower.pth", "vision_head.pth")
    torch.save({"x": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth.* is not part of a dino\.txt"):
        load_backbone(str(tmp_path), device="cpu")


# FG-CLIP 2 and RADIO --------------------------------------------------------------------------------------------------


def test_fg_clip_lacking_its_dense_head_is_refused(tmp_path) -> None:
    torch.manual_seed(6)
    ROWS["fgclip2"].make(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: x for key, x in state.items() if "dense_feature_head" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="is not a whole SigLIP"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.fixture(scope="module")
def radio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radio")
    torch.manual_seed(7)
    return folder, ROWS["radio"].make(folder)


def changed(radio, folder: Path, change) -> dict:
    """The file of a RADIO with other tensors, beside the same words."""
    source, _ = radio
    state = torch.load(source / "radio.pth.tar", weights_only=False)["state_dict"]
    torch.save(change(state), folder / "x.pth")
    return {"name": str(source / "siglip"), "weights": folder / "x.pth", "device": "cpu"}


def by_name(state: dict) -> dict:
    """The names that transformers' remote code saves."""
    found = {}
    for key, value in state.items():
        if match := re.match(r"_heads\.(\d)\.(.*)", key):
            found[f"radio_model.adaptors.{'abc'[int(match[1])]}.head_mlp.{match[2]}"] = value
        elif not key.startswith("_feature"):
            found["radio_model." + key.replace("base_model.", "model.")] = value
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: x for k, x in s.items() if "_heads" not in k}, "a RADIO without adaptors"),
        (lambda s: {k: x for k, x in s.items() if "_heads.2" not in k}, "has 0 adaptors of 40 numbers"),
        (
            lambda s: s | {k.replace("_heads.2", "_heads.1"): x for k, x in s.items() if "_heads.2" in k},
            "has 2 adaptors of 40 numbers",
        ),
        (lambda s: s | {"_heads.2.fc1.parametrizations.weight.original": torch.ones(1)}, "in training form"),
    ],
)
def test_adaptors_that_do_not_lead_to_the_words_are_refused(radio, tmp_path, change, message) -> None:
    with pytest.raises(WeightsError, match=message):
        load_backbone(**changed(radio, tmp_path, change))


def test_radio_alone_says_which_words_it_needs(radio) -> None:
    folder, _ = radio
    with pytest.raises(WeightsError, match="no words of its own: name the SigLIP 2 of its adaptor as the model beside"):
        load_backbone(str(folder / "radio.pth.tar"), device="cpu")


def test_adaptors_by_name_have_their_token_from_the_config(radio, tmp_path) -> None:
    """Without it the token is a guess, and a warning; patches do not depend on it."""
    _, theirs = radio
    pixels, square = torch.rand(1, 3, 24, 56), torch.rand(1, 3, 128, 128)
    numbered = load_backbone(**theirs.load, device="cpu")
    guessed = load_backbone(**changed(radio, tmp_path, by_name))
    assert "which token belongs to its adaptor c" in guessed.guesses[0]
    for index in (2, 0):
        (tmp_path / "config.json").write_text(json.dumps({"adaptor_configs": {"c": {"head_idx": index}}}))
        told = load_backbone(**changed(radio, tmp_path, by_name))
        assert told.guesses == ()
        assert torch.equal(told.encode_dense(pixels).features, numbered.encode_dense(pixels).features)
        assert torch.equal(told.encode_image(square), numbered.encode_image(square)) == (index == 2)


def test_corners_are_aligned_in_the_radio_that_was_published_so() -> None:
    """C-RADIOv3 B and H; not L and g, and not the fourth version (timm's note of the code on the hub)."""
    from densevl.weights.forms.radio import rule_of

    rules = {(width, tokens): rule_of(width, tokens) for width in (768, 1024, 1280, 1536) for tokens in (8, 10)}
    assert {key for key, rule in rules.items() if rule == "square_aligned"} == {(768, 8), (1280, 8)}


@torch.no_grad()
@pytest.mark.parametrize("ending", [".pth.tar", ".pth"])
def test_nvidias_file_is_a_proxy_too(radio, tmp_path, ending) -> None:
    """Its tower alone, with its own pixels and positions, against transformers' RADIO."""
    folder, theirs = radio
    (tmp_path / f"x{ending}").write_bytes((folder / "radio.pth.tar").read_bytes())
    proxy = load_proxy(tmp_path / f"x{ending}", device="cpu")
    pixels = torch.rand(1, 3, 24, 56)
    (model, _) = theirs.parts
    close(proxy.encode(pixels).flatten(2).mT, model(pixel_values=pixels).features)
    assert (proxy.position_rule, proxy.mean) == ("square", pytest.approx(model.config.norm_mean))


def test_siglip_2_keeps_the_punctuation_that_its_own_tokenizer_keeps(tmp_path) -> None:
    """Only SigLIP's first version strips it."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(8)
    ROWS["siglip2-any"].make(tmp_path)
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = list("abcdefghijklmnopqrstuvwxyz\u2581.,-'")
    kinds = trainers.BpeTrainer(vocab_size=90, special_tokens=names, initial_alphabet=letters, show_progress=False)
    trained.train_from_iterator(["a photo of a cat.", "a t-shirt, red"], kinds)
    model = json.loads(trained.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    theirs._tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    texts = ["A photo of a cat.", "a T-shirt, red"]
    for kind in ("Siglip2Tokenizer", "GemmaTokenizerFast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": kind}))
        ours = load_backbone(str(tmp_path), device="cpu")
        want = theirs(texts, padding="max_length", max_length=ours.tokenizer.context_length, return_tensors="pt")
        if kind == "Siglip2Tokenizer":
            assert torch.equal(ours.tokenizer(texts), want["input_ids"])
        assert [ours.tokenizer.clean_fn(text) for text in texts] == [text.lower() for text in texts]


def test_weights_that_lack_whole_blocks_are_noticed(radio, tmp_path) -> None:
    """The depth is read off the file, so such a file would run."""
    from densevl.weights.forms.sizes import shallow

    assert shallow(tmp_path, tower=(24, 24), head=(2, 2), text=(3, None)) == ()
    assert "has 23 blocks in its tower, and published ones of its width have 24" in shallow(tmp_path, tower=(23, 24))[0]
    loads = changed(radio, tmp_path, lambda s: {k: x for k, x in s.items() if not k.startswith("_heads.2.blocks")})
    ours = load_backbone(**loads)
    assert any("has 0 blocks in its adaptor 2" in text for text in ours.guesses)
    assert ours.name == "x+siglip"
    torch.manual_seed(9)
    ROWS["siglip2-any"].make(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {key: x for key, x in state.items() if "vision_model.encoder.layers.1." not in key}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has 1 blocks where config\.json beside it says 2 \(vision_config\)"):
        load_backbone(str(tmp_path), device="cpu")
