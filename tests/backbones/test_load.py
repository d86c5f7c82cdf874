"""Finding models by name: every way in, every wrong turn with one clear line, and no network in any of it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.errors
import open_clip
import pytest
import torch
from open_clip import pretrained
from safetensors.torch import save_file

from conftest import TINY, random_clip
from densevl import shipped
from densevl.backbones import available, load_backbone
from densevl.backbones.at_hand import best_at_hand
from densevl.errors import DensevlError, MissingExtraError, ModelError, OptionError, WeightsError
from densevl.weights import hub

PIXELS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path) -> None:
    """An empty hub cache, and an endpoint that nothing listens on."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def _state() -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in random_clip(seed=4).state_dict().items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder as open_clip's local-dir has it."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3}}))
    save_file(_state(), place / "open_clip_model.safetensors")
    return place


@pytest.fixture
def arch(tmp_path, monkeypatch) -> str:
    """A tiny architecture known to open_clip, with a tag on the hub."""
    (tmp_path / "tiny-vit.json").write_text(json.dumps(TINY | {"quick_gelu": False}))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    entry = {
        "hub": {"hf_hub": "someone/tiny-vit.hub/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)},
        "url": {"url": "x"},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", entry)
    return "tiny-vit"


def _put_into_hub_cache(cache: Path, content: bytes) -> Path:
    """Lay a file out as the hub's client does: blobs by SHA-256, snapshots as links, a ref."""
    repo = cache / "models--someone--tiny-vit.hub"
    blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = repo / "snapshots" / ("0" * 40)
    for place in (blob.parent, snapshot, repo / "refs"):
        place.mkdir(parents=True)
    blob.write_bytes(content)
    (snapshot / "open_clip_model.safetensors").symlink_to(blob)
    (repo / "refs" / "main").write_text("0" * 40)
    return snapshot / "open_clip_model.safetensors"


def _expected() -> torch.Tensor:
    return random_clip(seed=4).encode_image(PIXELS)


@pytest.mark.parametrize("spell", ["{}", "local-dir:{}", "{}/"])
def test_a_folder_loads_and_is_open_clips_own_model(folder, spell) -> None:
    backbone = load_backbone(spell.format(folder), device="cpu")
    torch.testing.assert_close(backbone.encode_image(PIXELS), _expected())
    assert backbone.name == "model"
    assert backbone.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["config", "folder"])
def test_config_and_weights_file(folder, tmp_path, suffix, name) -> None:
    weights = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in _state().items()}}, weights)
    else:
        save_file(_state(), weights)
    backbone = load_backbone(
        str(folder / "open_clip_config.json" if name == "config" else folder), weights, device="cpu"
    )
    torch.testing.assert_close(backbone.encode_image(PIXELS), _expected())


def test_the_hub_cache_is_enough_and_the_tag_decides_quick_gelu(arch, tmp_path) -> None:
    source = tmp_path / "w.safetensors"
    save_file(_state(), source)
    _put_into_hub_cache(tmp_path / "hub", source.read_bytes())
    backbone = load_backbone(f"{arch}/hub", device="cpu")
    torch.testing.assert_close(backbone.encode_image(PIXELS), _expected())  # random_clip uses QuickGELU
    assert backbone.mean == (0.1, 0.2, 0.3)


def test_a_damaged_download_is_removed_and_named(tmp_path) -> None:
    link = _put_into_hub_cache(tmp_path / "hub", b"good")
    digest = hashlib.sha256(b"good").hexdigest()
    hub.verify(link, digest)
    hub.verify(link, "a small file's other hash")
    link.resolve().write_bytes(b"bad")
    with pytest.raises(WeightsError, match="SHA-256"):
        hub.verify(link, digest)
    assert hub.cached_file("someone/tiny-vit.hub/") is None


def test_available_lists_photo_and_clip_without_a_network() -> None:
    names = [info.name for info in available()]
    assert names[0] == "ViT-B-16/openai"
    assert "photo" in names


def test_auto_prefers_a_clip_on_disk(monkeypatch) -> None:
    monkeypatch.setattr(hub, "cached_file", lambda hub_id: Path("x") if "laion2B" in hub_id else None)
    assert best_at_hand() == "ViT-B-16/laion2b_s34b_b88k"


def test_auto_without_any_model_says_how_to_get_one(monkeypatch) -> None:
    monkeypatch.setattr("densevl.backbones.at_hand.find_spec", lambda name: None)
    monkeypatch.setattr("densevl.backbones.at_hand.MINI", "weights/nowhere")
    with pytest.raises(ModelError, match=r"densevl\[photo\]"):
        load_backbone("auto")


def test_auto_takes_the_shipped_model_last(monkeypatch) -> None:
    monkeypatch.setattr("densevl.backbones.at_hand.find_spec", lambda name: None)
    assert best_at_hand() == "mini"
    backbone = load_backbone("auto", device="cpu")
    assert backbone.name == "mini"
    assert [reach.trust for reach in backbone.reach(["dog", "samovar"])] == ["good", "none"]


def _pickle_bomb() -> bytes:
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a weights file ran code')",))

    buffer = io.BytesIO()
    torch.save({"state_dict": Bomb()}, buffer)
    return buffer.getvalue()


def _torch_file(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/constants.pkl", "x")
    return buffer.getvalue()


def _zip_of_nothing() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", "y")
    return buffer.getvalue()


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _safetensors(state: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(state)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("w.safetensors", lambda: b"", "is empty"),
        ("w.safetensors", lambda: b"<!DOCTYPE html><html>", "is a web page"),
        ("w.pt", lambda: b"\n <html>", "is a web page"),
        ("w.safetensors", lambda: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("w.safetensors", lambda: b"\xff" * 100, "header is malformed"),
        ("w.safetensors", lambda: (2**63).to_bytes(8, "little") + b"{}", "header is malformed"),
        ("w.safetensors", lambda: (10**6).to_bytes(8, "little") + b'{"a"', "cut off"),
        ("w.safetensors", lambda: _cut(_safetensors(_state())), "damaged"),
        ("w.pt", lambda: b"hello world, I am not weights", "neither safetensors nor a torch checkpoint"),
        ("w.npz", lambda: b"PK", "its name must end in"),
        ("w.pt", _torchscript, "not a torch checkpoint"),
        (
            "w.safetensors",
            lambda: _safetensors({**_state(), "visual.positional_embedding": torch.zeros(1 + 64, 32)}),
            r"positional_embedding is \(65, 32\), not \(17, 32\)",
        ),
        (
            "w.pt",
            lambda: _torch_file({**_state(), "positional_embedding": torch.zeros(77, 16)}),
            r"positional_embedding is \(77, 16\), not \(20, 16\)",
        ),
        ("w.pt", _pickle_bomb, "holds no tensors"),
        ("w.pt", _zip_of_nothing, "cannot be read|damaged"),
        ("w.safetensors", lambda: _safetensors({"a": torch.zeros(2)}), r"does not fit .*missing .*1 unexpected \(a\)"),
        (
            "w.safetensors",
            lambda: _safetensors({**_state(), "visual.proj": torch.zeros(3, 3)}),
            r"1 of another shape \(visual.proj is \(3, 3\), not",
        ),
    ],
)
def test_wrong_weights_are_explained_in_one_line(folder, tmp_path, name, content, reason) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(WeightsError, match=reason) as caught:
        load_backbone(str(folder), tmp_path / name, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nonsense", "no model 'nonsense'"),
        ("fotos", "closest: photo"),
        ("ViT-B-61/openai", r"no architecture 'ViT-B-61' in open_clip \(closest: ViT-B-16"),
        ("ViT-B-16/opnai", r"no weights tagged 'opnai' \(closest: openai"),
        ("tiny-vit/hub", "not on this disk and the hub cannot be reached"),
        ("tiny-vit/url", "not on the hub"),
        ("local-dir:/no/such/folder", "has no open_clip_config.json"),
        (".", "has no open_clip_config.json"),
    ],
)
def test_wrong_names_are_explained_in_one_line(arch, name, reason) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        load_backbone(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_offline_mode_is_respected(arch, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        load_backbone(f"{arch}/hub", device="cpu")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{not json", "cannot be read"),
        ("[1]", "holds a list"),
        ('{"model_cfg": {"embed_dim": 4}}', "not an open_clip model config"),
        (json.dumps(TINY | {"nonsense": 1}), "cannot build it"),
        (json.dumps(TINY | {"text_cfg": 3}), "not an open_clip model config"),
        (json.dumps(TINY | {"vision_cfg": {**TINY["vision_cfg"], "patch_size": 0}}), "cannot build it"),
        (json.dumps(TINY | {"text_cfg": {**TINY["text_cfg"], "tokenizer_kwargs": {"x": 1}}}), "cannot build it"),
        (json.dumps({"model_cfg": TINY, "preprocess_cfg": [1]}), "preprocess_cfg is a list"),
        (json.dumps({"model_cfg": TINY, "preprocess_cfg": {"interpolation": "psychic"}}), "cannot build it"),
        ("[" * 100_000, "cannot be read"),
        (
            json.dumps(TINY | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}),
            "weights file|no dense",
        ),
    ],
)
def test_wrong_configs_are_explained_in_one_line(folder, config, reason) -> None:
    (folder / "open_clip_config.json").write_text(config)
    with pytest.raises(DensevlError, match=reason) as caught:
        load_backbone(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_towers_without_dense_features_say_why(folder) -> None:
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "pool_type": "none"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ModelError, match="gives all tokens"):
        load_backbone(str(folder), device="cpu")


TIMM_TOWERS = {  # real architectures, the smallest of their kind
    "vit": {"image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map"},
    "fastvit": {"image_size": 256, "timm_model_name": "fastvit_t8", "timm_pool": "avg"},
}
COCA = {"width": 16, "heads": 2, "layers": 1, "context_length": 20, "vocab_size": 49408, "attn_pooler_heads": 2}


def _other_config(kind: str) -> dict:
    if kind == "coca":
        text = {**TINY["text_cfg"], "embed_cls": True, "output_tokens": True}
        vision = {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        return {**TINY, "custom_text": True, "text_cfg": text, "vision_cfg": vision, "multimodal_cfg": COCA}
    vision = TIMM_TOWERS[kind] | {"timm_proj": None, "timm_model_pretrained": True}  # what a config says is not fetched
    return {**TINY, "custom_text": True, "vision_cfg": vision}


@pytest.mark.parametrize("kind", ["coca", *TIMM_TOWERS])
def test_other_towers_load_strictly(tmp_path, kind) -> None:
    config = _other_config(kind)
    plain = {key: value for key, value in config.items() if key != "custom_text"}
    plain["vision_cfg"] = plain["vision_cfg"] | ({} if kind == "coca" else {"timm_model_pretrained": False})
    model = (open_clip.CoCa if kind == "coca" else open_clip.CustomTextCLIP)(**plain).eval()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(state, tmp_path / "open_clip_model.safetensors")
    backbone = load_backbone(str(tmp_path), device="cpu")
    pixels = torch.randn(1, 3, *backbone.tower.image_size)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(pixels), model.encode_image(pixels, normalize=False))
    lost = next(key for key in state if key.startswith("visual."))
    save_file({key: value for key, value in state.items() if key != lost}, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=f"1 missing .{lost}"):
        load_backbone(str(tmp_path), tmp_path / "cut.safetensors", device="cpu")


def test_a_bare_weights_file_is_fed_as_all_published_weights_of_its_architecture(arch, tmp_path) -> None:
    save_file(_state(), tmp_path / "w.safetensors")
    assert load_backbone(arch, tmp_path / "w.safetensors", device="cpu").mean != (0.1, 0.2, 0.3)  # "url" says nothing
    del pretrained._PRETRAINED[arch]["url"]
    assert load_backbone(arch, tmp_path / "w.safetensors", device="cpu").mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name"])
def test_a_text_side_of_hugging_face_names_its_package(folder, monkeypatch, key) -> None:
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], key: "roberta-base"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    monkeypatch.setattr("densevl.backbones.build.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"the text side of 'model' needs .*pip install \"densevl\[hf\]"):
        load_backbone(str(folder), device="cpu")


@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
def test_a_text_tower_of_hugging_face_reads_words(folder, tmp_path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 1, "<unk>": 3, "a": 4, "cat": 5, "dog": 6}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)  # beside the weights, where a model folder has it
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.RobertaConfig(**sizes, intermediate_size=16, max_position_embeddings=40).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": "nowhere", "context_length": 8}
    config = {**TINY, "text_cfg": text, "quick_gelu": True}
    offline = {**config, "text_cfg": {**text, "hf_model_pretrained": False}}
    model = open_clip.CustomTextCLIP(**offline).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    backbone = load_backbone(str(folder), device="cpu")
    rows = backbone.encode_text(["a cat", "a dog"])
    assert rows.shape == (2, TINY["embed_dim"])
    assert not torch.allclose(rows[0], rows[1], atol=1e-4)
    assert backbone.encode_dense(PIXELS).features.shape == (1, TINY["embed_dim"], 4, 4)
    assert len(backbone.text_fingerprint) == 64


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta device"])
def test_a_device_that_is_not_there_is_one_line(folder, device) -> None:
    with pytest.raises(OptionError, match=f"device '{device}' cannot be used here") as caught:
        load_backbone(str(folder), device=device)
    assert "\n" not in str(caught.value)


def test_weights_without_an_architecture_are_read_by_their_sizes_and_say_what_is_guessed(folder, tmp_path) -> None:
    told = load_backbone(weights=folder / "open_clip_model.safetensors").guesses
    parts = ("its activation", "its pixel statistics", "heads the image tower", "heads the text tower")
    assert [part in text for part, text in zip(parts, told, strict=True)] == [True] * 4
    (tmp_path / "none").mkdir()
    with pytest.raises(WeightsError, match="is a folder"):
        load_backbone(str(folder), tmp_path / "none")


class Hub:
    """Stands in for the hub's client: one file, its published digest, and how often it was asked."""

    def __init__(self, monkeypatch, cache: Path, content: bytes, etag: str) -> None:
        self.asked: list[str] = []

        def download(repo: str, name: str, revision: str | None = None) -> str:
            self.asked.append(name)
            if name != "open_clip_model.safetensors":
                raise huggingface_hub.errors.EntryNotFoundError("no such file")
            return str(_put_into_hub_cache(cache, content))

        monkeypatch.setattr(hub, "why_unreachable", lambda endpoint: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: SimpleNamespace(etag=etag, size=None))


def test_a_download_is_checked_and_loads(arch, tmp_path, monkeypatch) -> None:
    content = _safetensors(_state())
    client = Hub(monkeypatch, tmp_path / "hub", content, hashlib.sha256(content).hexdigest())
    backbone = load_backbone(f"{arch}/hub", device="cpu")
    torch.testing.assert_close(backbone.encode_image(PIXELS), _expected())
    load_backbone(f"{arch}/hub", device="cpu")
    assert client.asked == ["open_clip_model.safetensors"]  # the second time it is in the cache


def test_a_download_with_another_digest_is_refused_and_removed(arch, tmp_path, monkeypatch) -> None:
    Hub(monkeypatch, tmp_path / "hub", _safetensors(_state()), "0" * 64)
    with pytest.raises(WeightsError, match="is not the hub's"):
        load_backbone(f"{arch}/hub", device="cpu")
    assert hub.cached_file("someone/tiny-vit.hub/") is None


def test_a_missing_weights_file_and_an_empty_folder(folder, tmp_path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_backbone(str(folder), tmp_path / "none.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_backbone(str(folder))


def test_open_clip_need_not_be_importable_for_its_vocabulary(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert shipped.open_clip_file("bpe_simple_vocab_16e6.txt.gz").is_file()


def test_open_clip_that_is_not_installed_is_said(monkeypatch) -> None:
    monkeypatch.setattr(shipped, "installed_file", lambda module, relative: None)
    with pytest.raises(ModelError, match="not installed: pip install open_clip_torch"):
        shipped.open_clip_file("bpe_simple_vocab_16e6.txt.gz")
