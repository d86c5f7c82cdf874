"""Models as the publishing libraries save them, loaded by densevl: features equal to the library's own."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from densevl import Segmenter, load_backbone
from densevl.backbones.managing import convert, describe, try_out
from densevl.errors import DensevlError, ModelError, OptionError, WeightsError
from densevl.weights.folders import parts_in, read_weights, weights_in
from densevl.weights.forms import recognise
from densevl.weights.forms.lora import merge
from densevl.weights.forms.radio import beside_words
from tests.conftest import close
from tools import forms
from tools.forms import ROWS, differences

pytest.importorskip("transformers", reason="the publishing library")
PACKAGES = {"cn-clip": "cn_clip", "open_clip_torch": "open_clip"}


def made(name: str, folder: Path) -> Any:
    row = ROWS[name]
    if missing := [lib for lib in row.libraries.split() if not find_spec(PACKAGES.get(lib, lib))]:
        pytest.skip(f"{missing[0]}, its authors' package, is not installed")
    folder.mkdir(exist_ok=True)
    return row.make(folder)


@pytest.mark.parametrize("name", ROWS)
def test_a_model_gives_the_features_of_the_library_that_publishes_it_converted_too(tmp_path: Path, name) -> None:
    saved = made(name, tmp_path / "in")
    assert max(x or 0.0 for x in differences(saved)) < 2e-5  # of features as large as 8
    first: Any = load_backbone(**saved.load, device="cpu")
    convert(first, tmp_path / "out")
    if name == "multilingual":
        assert not any((tmp_path / "in" / "words").iterdir())  # what open_clip would ask the hub for
    again: Any = load_backbone(f"local-dir:{tmp_path / 'out'}", device="cpu")
    pixels = torch.randn(2, 3, *first.tower.image_size)
    close(again.encode_image(pixels), first.encode_image(pixels))
    if saved.text is not None:
        close(again.model.encode_text(saved.tokens), first.model.encode_text(saved.tokens))
    else:
        close(again.encode_text(["cat"]), first.encode_text(["cat"]))
    told = {key: value[0] for key, value in first.reading.items() if isinstance(value, list)}
    assert {key: again.reading[key][0] for key in told} == told
    assert (again.mean, again.guesses) == (first.mean, ())
    patch = first.patch_size
    dense = again.encode_dense(torch.randn(1, 3, patch, 2 * patch), "vanilla")
    assert dense.features.shape == (1, first.embed_dim, 1, 2)


@pytest.mark.parametrize("saved", ["shards", "pickle"])
@pytest.mark.parametrize("name", ["clip", "siglip", "chinese", "alt", "jina-v2"])
def test_a_folder_in_shards_or_as_a_pickle_is_the_same_model(tmp_path: Path, name, saved) -> None:
    from safetensors.torch import load_file

    model = made(name, tmp_path / "in")
    pixels = torch.randn(1, 3, forms.SIDE, forms.SIDE)
    want = load_backbone(**model.load, device="cpu").encode_image(pixels)
    path = tmp_path / "in" / "model.safetensors"
    state = load_file(path)
    path.unlink()
    if saved == "pickle":
        torch.save(state, path.with_name("pytorch_model.bin"))
    else:
        names = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(state)}
        for shard in set(names.values()):
            save_file({key: x for key, x in state.items() if names[key] == shard}, path.with_name(shard))
        path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    backbone = load_backbone(**model.load, device="cpu")
    assert torch.equal(backbone.encode_image(pixels), want)
    assert backbone.reading["image_activation"][1] in ("config.json", "the tower's own")


# What stands in files beside the weights ------------------------------------------------------------------------------

OWN = forms.OWN


@torch.no_grad()
def _differences(model: Any, backbone: Any) -> float:
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 100, (3, 16))
    image = (backbone.encode_image(pixels) - model.encode_image(pixels)).abs().max()
    text = (backbone.model.encode_text(tokens) - model.encode_text(tokens)).abs().max()
    return float(torch.maximum(image, text))


def test_the_file_of_openai_says_its_activation(tmp_path: Path) -> None:
    backbone = load_backbone(**made("openai", tmp_path).load, device="cpu")
    assert backbone.reading["image_activation"] == ["quick_gelu", "OpenAI's own file"]
    assert backbone.guesses == ()


def test_slip_is_a_vit_that_every_recipe_rewires(tmp_path: Path) -> None:
    backbone = load_backbone(**made("slip", tmp_path).load, device="cpu")
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    assert backbone.encode_dense(torch.randn(2, 3, 32, 32), "sclip").features.shape == (2, 24, 4, 4)


def test_differential_attention_is_dense_and_not_rewired(tmp_path: Path) -> None:
    backbone = load_backbone(**made("diffclip", tmp_path).load, device="cpu")
    assert backbone.default_recipe == "vanilla"
    assert backbone.encode_dense(torch.randn(1, 3, 32, 48)).features.shape == (1, 24, 4, 6)
    with pytest.raises(DensevlError, match="DifferentialAttention has no plain q, k, v"):
        backbone.encode_dense(torch.randn(1, 3, 32, 32), "sclip")


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.module.", "model.", ""])
def test_a_training_checkpoint_is_its_model_and_says_that_it_guesses(tmp_path: Path, wrap) -> None:
    from argparse import Namespace

    model, state = forms.own()
    content = {
        "epoch": 3,
        "args": Namespace(lr=1e-3),
        "state_dict": {f"{wrap}{key}": x.half() for key, x in state.items()},
    }
    torch.save(content, tmp_path / "x.pt")
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert backbone.encode_image(torch.randn(1, 3, 32, 32)).dtype == torch.float32
    model.load_state_dict({key: x.half().float() for key, x in state.items()})
    assert _differences(model, backbone) < 1e-5
    assert "does not say its activation" in backbone.guesses[0]


def test_a_tower_that_computes_with_its_weights_while_it_is_made_is_built_too(tmp_path: Path, monkeypatch) -> None:
    """MobileCLIP-B's, which cannot be made without memory."""
    import open_clip
    import timm

    small, make = {"img_size": 64, "depth": 1}, timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **how: make(name, **{**how, **small}))
    vision = {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None, "image_size": 64}
    config = {"embed_dim": 768, "vision_cfg": vision, "text_cfg": OWN["text_cfg"]}
    model = forms.scaled(open_clip.CustomTextCLIP(**config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    (tmp_path / "b.json").write_text(json.dumps({**config, "custom_text": True}))
    backbone = load_backbone(str(tmp_path / "b.json"), tmp_path / "x.safetensors", device="cpu")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(pixels), model.encode_image(pixels))


def test_an_image_tower_takes_the_text_of_the_model_it_was_trained_from(tmp_path: Path, monkeypatch) -> None:
    _, base = forms.own({**OWN, "quick_gelu": True})
    model, state = forms.own({**OWN, "quick_gelu": True})
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "x.safetensors")
    monkeypatch.setattr(
        "densevl.backbones.from_files.hub.fetch", lambda hub_id, name: tmp_path / "base" / "x.safetensors"
    )
    monkeypatch.setattr("densevl.backbones.from_files._architecture", lambda arch: OWN)
    tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    torch.save(tower, tmp_path / "fare.pt")
    backbone = load_backbone("ViT-L-14/openai", tmp_path / "fare.pt", device="cpu")
    model.load_state_dict({**base, **{key: x for key, x in state.items() if key.startswith("visual.")}})
    assert _differences(model, backbone) < 1e-5
    assert backbone.reading["image_activation"] == ["quick_gelu", "open_clip's table, ViT-L-14/openai"]


@pytest.mark.parametrize(
    ("arch", "taken", "warned"),
    [
        ("ViT-L-14-336", "quick_gelu", ""),
        ("ViT-H-14-378", "quick_gelu", ""),
        ("RN50", "quick_gelu", ""),
        ("ViT-B-32", "gelu", "QuickGELU for openai, .* name it beside the file: ViT-B-32/openai"),
        ("ViT-B-32/openai", "quick_gelu", ""),
        ("ViT-B-32/laion2b_e16", "gelu", ""),
        ("ViT-L-14", "gelu", "0.5 for laion2b_s32b_b82k"),
        ("ViT-H-14", "gelu", "squash for dfn5b"),
    ],
)
def test_the_activation_is_that_of_the_published_weights_or_a_warned_guess(
    tmp_path: Path, monkeypatch, arch, taken, warned
) -> None:
    _, state = forms.own()
    save_file(state, tmp_path / "x.safetensors")
    monkeypatch.setattr("densevl.backbones.from_files._architecture", lambda name: {**OWN, "quick_gelu": False})
    backbone = load_backbone(arch, tmp_path / "x.safetensors", device="cpu")
    assert backbone.reading["image_activation"][0] == taken
    told = " ".join(backbone.guesses)
    assert bool(told) == bool(warned)
    assert re.search(warned, told)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("visual.blocks.0.attn.lambda_q1", "no image_projection"),
        ("prompt_learner.ctx", "learned prompts"),
        ("base.lora_A.weight", "LoRA"),
        ("lora_te_text_model_encoder_layers_0.lora_down.weight", "LoRA"),
        ("visual.conv1_alpha.weight", "Alpha-CLIP whose image tower is not a ViT"),
        ("fusion_module.x", "PMC-CLIP whose image tower is not CLIP's ResNet"),
        ("positional_embedding_res", "not a whole Long-CLIP"),
        ("visual_encoder.cls_token", "BLIP"),
        ("vision_model.blocks.0.x", "an incomplete EVA-02"),
    ],
)
def test_what_is_no_model_or_half_of_one_is_told_by_its_name(tmp_path: Path, key, reason) -> None:
    torch.save({key: torch.ones(1), "other": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=reason):
        load_backbone("ViT-B-32", tmp_path / "x.pt", device="cpu")


ODD = {
    "gone": lambda x: None,
    "a number": lambda x: torch.ones(()),
    "nothing": lambda x: torch.ones([0] * x.ndim),
    "half": lambda x: x[: len(x) // 2] if x.ndim else torch.ones(2),
    "of a higher rank": lambda x: x[None],
    "turned": lambda x: x.mT if x.ndim > 1 else x[None],
    "long": lambda x: torch.ones([7000, *[1] * (x.ndim - 1)]),
    "integers": lambda x: torch.ones(x.shape, dtype=torch.uint8),
}


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("openai", "openai-resnet", "multilingual")])
def test_one_odd_tensor_of_any_form_is_read_or_one_line(tmp_path: Path, name, words) -> None:
    load = made(name, tmp_path).load
    parts = parts_in(tmp_path)
    path = tmp_path if parts else load.get("weights") or weights_in(tmp_path, own=False)
    path = weights_in(path, own=False) if path.is_dir() and not parts else path
    state, config = parts or read_weights(path).tensors, tmp_path / "config.json"
    if name == "radio":
        state = beside_words(read_weights(tmp_path / "siglip" / "model.safetensors").tensors, state, path)
    told = json.loads(config.read_text()) if config.is_file() else None
    base = read_weights(tmp_path / "base" / "model.safetensors").tensors if name == "lora" else None
    keys = list(state)
    for key in {*keys[:: max(1, len(keys) // 8)], *keys[:4], *keys[-4:]}:
        for change in ODD.values():
            value = change(state[key])
            changed = {**state, key: value} if value is not None else {k: x for k, x in state.items() if k != key}
            said = ""
            try:
                recognise(changed if base is None else merge(base, changed, path), path, told, None, words=words)
            except DensevlError as error:
                said = str(error)
            assert "\n" not in said
            assert len(said) < 500


# Words that come from elsewhere, and vectors cut short ----------------------------------------------------------------


def test_an_image_tower_needs_no_text_side_where_words_are_given(tmp_path: Path) -> None:
    import numpy as np

    model, _ = forms.own()
    torch.save(model.visual.state_dict(), tmp_path / "tower.pt")
    rows = {"cat": np.eye(24)[0], "狗": np.eye(24)[1]}
    np.savez(tmp_path / "words.npz", **rows)
    save_file({text: torch.tensor(row) for text, row in rows.items()}, tmp_path / "words.safetensors")
    for words in (rows, tmp_path / "words.npz", tmp_path / "words.safetensors"):
        backbone: Any = load_backbone("auto", tmp_path / "tower.pt", words=words, device="cpu")
        close(backbone.encode_text(["狗", "cat"]), torch.eye(24)[[1, 0]])
        assert backbone.logit_scale == pytest.approx(100)
    assert backbone.reach(["狗"])[0].trust == "good"
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        close(backbone.encode_image(pixels), model.visual(pixels))
    try_out(backbone)
    found = Segmenter(backbone)(np.zeros((64, 64, 3), np.uint8), "cat,狗", background="none")
    assert found.labels.shape == (64, 64)
    with pytest.raises(ModelError, match="no text vector of 'bird' was given"):
        backbone.encode_text(["bird"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"cat": [1.0, 2.0]}, "24 numbers each; that of 'cat' is"), ({}, "an .npz file"), ({"cat": ["x"] * 24}, "<U1")],
)
def test_files_of_words_that_do_not_fit(tmp_path: Path, content, reason) -> None:
    import numpy as np

    torch.save(forms.own()[0].visual.state_dict(), tmp_path / "tower.pt")
    np.savez(tmp_path / "words.npz", **{text: np.array(row) for text, row in content.items()})
    with pytest.raises(DensevlError, match=reason):
        load_backbone("auto", tmp_path / "tower.pt", words=tmp_path / "words.npz", device="cpu")


def test_vectors_cut_short_are_the_first_numbers_of_both_sides_and_warn_unless_trained_for_it(tmp_path: Path) -> None:
    load = made("clip", tmp_path).load
    whole, short = load_backbone(**load, device="cpu"), load_backbone(**load, truncate_dim=8, device="cpu")
    pixels = torch.randn(1, 3, 32, 32)
    close(short.encode_image(pixels), whole.encode_image(pixels)[:, :8])
    close(short.encode_text(["cat"]), whole.encode_text(["cat"])[:, :8])
    dense = [model.encode_dense(pixels, "vanilla").features for model in (short, whole)]
    close(dense[0], dense[1][:, :8])
    assert "cut to 8 of 24 numbers" in short.guesses[0]
    assert whole.guesses == ()
    assert load_backbone(**made("jina-v2-cut", tmp_path / "jina").load, device="cpu").guesses == ()
    with pytest.raises(WeightsError, match="24 numbers, fewer than 25"):
        load_backbone(**load, truncate_dim=25, device="cpu")
    with pytest.raises(WeightsError, match="no last projection"):
        load_backbone(**made("siglip", tmp_path / "siglip").load, truncate_dim=8, device="cpu")
    for wrong in (0, -1, 1.5, True, "8"):
        with pytest.raises(OptionError, match="truncate_dim is"):
            load_backbone(**load, truncate_dim=wrong, device="cpu")


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state, told: told.update(use_dora=True), "says use_dora"),
        (lambda state, told: told.update(lora_alpha="x"), "no number for lora_alpha"),
        (lambda state, told: told.update(lora_alpha=True), "no number for lora_alpha"),
        (lambda state, told: told.update(init_lora_weights="pissa"), "changes the base too"),
        (lambda state, told: told.update(init_lora_weights="pissa_niter_4"), "changes the base too"),
        (lambda state, told: told.update(peft_type="LOHA"), "says LOHA"),
        (lambda state, told: told.update(peft_type="ADALORA"), "says ADALORA"),
        (lambda state, told: state.update({"base_model.model.x.lora_A.weight": torch.ones(3, 4)}), "changes x.weight"),
        (lambda state, told: state.update({"base_model.model.x.lora_embedding_A": torch.ones(3, 4)}), "merge it with"),
        (lambda state, told: told.clear(), "no number for lora_alpha"),
    ],
)
def test_changes_that_are_not_merged(tmp_path: Path, change, reason) -> None:
    from safetensors.torch import load_file

    load = made("lora", tmp_path).load
    path = load["weights"] / "adapter_model.safetensors"
    state, told = load_file(path), json.loads((load["weights"] / "adapter_config.json").read_text())
    change(state, told)
    save_file(state, path)
    (load["weights"] / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(WeightsError, match=reason):
        load_backbone(**load, device="cpu")


def test_changes_named_by_their_adapter_beside_a_file_or_a_local_dir_are_merged_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    saved = made("lora", tmp_path)
    base, path = Path(saved.load["name"]), saved.load["weights"] / "adapter_model.safetensors"
    want = load_backbone(**saved.load, device="cpu")
    pixels = torch.randn(1, 3, *want.tower.image_size)
    save_file({key.replace(".weight", ".default.weight"): value for key, value in load_file(path).items()}, path)
    got = load_backbone(f"local-dir:{base}", path, device="cpu")
    assert torch.equal(got.encode_image(pixels), want.encode_image(pixels))
    got = load_backbone(str(base / "model.safetensors"), path, device="cpu")  # whose number of heads is a guess
    assert torch.equal(got.model.state_dict()["visual.proj"], want.model.state_dict()["visual.proj"])
    block = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(got.model.state_dict()[block], want.model.state_dict()[block])
    with pytest.raises(ModelError, match="two files of whole models"):
        load_backbone(str(base / "model.safetensors"), base / "model.safetensors", device="cpu")


def test_one_of_several_files_in_a_folder_may_be_named(tmp_path: Path) -> None:
    folder = Path(made("clip", tmp_path).load["name"])
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="name the file itself"):
        load_backbone(str(folder), device="cpu")
    assert load_backbone(str(folder), folder / "b.safetensors", device="cpu").guesses == ()
    with pytest.raises(ModelError, match="has weights of its own"):
        load_backbone("photo", folder / "b.safetensors", device="cpu")


def test_a_siglip_takes_words_with_and_without_its_text_side(tmp_path: Path) -> None:
    folder = Path(made("siglip", tmp_path).load["name"])
    own = load_backbone(str(folder), device="cpu")
    words = {"cat": torch.ones(own.embed_dim)}
    given = load_backbone(str(folder), words=words, device="cpu")
    pixels = torch.randn(1, 3, *own.tower.image_size)
    assert torch.equal(given.encode_image(pixels), own.encode_image(pixels))
    assert describe(given)["words"][0] == 1


@pytest.mark.parametrize(("name", "most"), [("chinese", 40), ("alt", 38)])
def test_texts_are_no_longer_than_the_places_of_their_text_side(tmp_path: Path, name: str, most: int) -> None:
    from safetensors.torch import load_file

    folder = Path(made(name, tmp_path).load["name"])
    state = load_file(folder / "model.safetensors")
    for key, value in state.items():
        if key.endswith("text_model.embeddings.position_embeddings.weight") or "roberta.embeddings.position_e" in key:
            state[key] = value[:40].contiguous()
        if key.endswith(("embeddings.position_ids", "embeddings.token_type_ids")) and "text" in key:
            state[key] = value[:, :40].contiguous()
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    model = load_backbone(str(folder), device="cpu")
    assert model.context_length == most
    assert model.encode_text(["a dog"]).isfinite().all()


def test_changes_without_their_config_or_their_base(tmp_path: Path) -> None:
    load = made("lora", tmp_path).load
    with pytest.raises(WeightsError, match="name its base beside it"):
        load_backbone("auto", load["weights"] / "adapter_model.safetensors", device="cpu")
    (load["weights"] / "adapter_config.json").unlink()
    with pytest.raises(WeightsError, match=r"adapter_config.json, which says their scale"):
        load_backbone(load["name"], load["weights"] / "adapter_model.safetensors", device="cpu")


# Checkpoints of training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model_state", "net", "params", "weights", "model_ema", "anything"])
def test_the_one_model_in_a_checkpoint_is_read_by_any_key(tmp_path: Path, key: str) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(3)}
    torch.save({key: state, "optimizer": {"state": {0: {"x": torch.ones(1)}}}, "epoch": 1}, tmp_path / "x.pt")
    read = read_weights(tmp_path / "x.pt")
    assert (set(read.tensors), read.notes) == ({"a", "b"}, ())


def test_of_several_models_in_a_checkpoint_the_taken_one_is_named(tmp_path: Path) -> None:
    state, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    torch.save({"teacher": other, "model": state}, tmp_path / "x.pt")
    read = read_weights(tmp_path / "x.pt")
    assert torch.equal(read.tensors["a"], state["a"])
    assert "taken 'model', not 'teacher'" in read.notes[0]
    torch.save({"this": other, "that": state}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="several dicts of tensors \\('this', 'that'\\)"):
        read_weights(tmp_path / "x.pt")


# Labels in other languages --------------------------------------------------------------------------------------------


def test_chinese_labels_by_the_vocabulary_of_their_model(tmp_path: Path) -> None:
    clip = pytest.importorskip("cn_clip.clip", reason="Chinese-CLIP's package holds its vocabulary")
    backbone: Any = load_backbone(**made("cn_clip-resnet", tmp_path).load, device="cpu")
    labels = ["一只猫", "狗", "cat", "杰尼龟 Squirtle", "", "字" * 90]
    assert torch.equal(backbone.tokenizer(labels), clip.tokenize(labels))
    close(backbone.encode_text(["狗", "一只猫"])[0], backbone.encode_text(["狗"])[0])
    assert len(backbone.encode_text(labels).unique(dim=0)) == len(labels)
    assert backbone.reach(["狗"])[0].trust == "good"


SENTENCES = (
    "a cat and a dog in the garden",
    "eine Katze und ein Hund im Garten",
    "un gato y un perro en el jardín",
    "кошка и собака в саду",
    "قطة وكلب في الحديقة",
    "बिल्ली और कुत्ता बगीचे में",
    "庭にいる猫と犬",
    "花园里的猫和狗",
)


def unigram(folder: Path) -> None:
    """A tokenizer of the kind that XLM-R has, trained on eight sentences; its real one is in no package."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    own = Tokenizer(models.Unigram())
    own.normalizer, own.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    own.train_from_iterator(
        SENTENCES, trainers.UnigramTrainer(vocab_size=forms.VOCABULARY, special_tokens=special, unk_token="<unk>")
    )
    own.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    own.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.mark.parametrize("name", ["jina-v2", "alt", "metaclip", "siglip"])
def test_labels_of_eight_languages_reach_a_multilingual_text_side(tmp_path: Path, name) -> None:
    load = made(name, tmp_path).load
    unigram(tmp_path)
    backbone: Any = load_backbone(**load, device="cpu")
    labels = [sentence.split()[1 if len(sentence.split()) > 1 else 0] for sentence in SENTENCES]
    found = torch.nn.functional.normalize(backbone.encode_text(labels), dim=-1)
    assert (found @ found.T - torch.eye(len(labels))).max() < 0.9999
    assert [row.trust for row in backbone.reach(labels)] == ["good"] * len(labels)
    close(backbone.encode_text([labels[5], labels[0]])[1], backbone.encode_text(labels)[0])
    if name == "metaclip":
        (tmp_path / "tokenizer_config.json").unlink()
        with pytest.raises(WeightsError, match="does not say how it pads"):
            load_backbone(**load, device="cpu")


def test_a_folder_that_names_code_is_read_without_asking_to_run_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run code"))
    monkeypatch.setattr("signal.signal", lambda *_: pytest.fail("asks whether to run code"))
    backbone = load_backbone(**made("jina-v2", tmp_path).load, device="cpu")
    assert backbone.encode_text(["cat"]).shape == (1, 128)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    told["auto_map"] = {"AutoTokenizer": ["x.X", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "tokenizer_class": "X"}))
    with pytest.raises(DensevlError):
        load_backbone(str(tmp_path), device="cpu")
