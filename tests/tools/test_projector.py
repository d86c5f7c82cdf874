"""Two towers joined by projectors: their arithmetic in float64, their training, and their file as a model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import densevl
from conftest import close
from densevl.backbones.projected import projector
from densevl.backbones.projected.projector import Head, Joined, Projector
from densevl.backbones.projected.towers import Words, load_vision, stamp
from densevl.errors import DensevlError, ModelError, OptionError, RecipeError, WeightsError
from densevl.pipelines.feeding import embed_images
from tools.projector.__main__ import main
from tools.projector.distil import HeadPlan, Seen, distil
from tools.projector.pairs import CAPTIONS, Pairs, read
from tools.projector.train import SCALE, Plan, alikeness, contrast, train

QUICK = ["--steps", "3", "--text-layers", "2", "--width", "16", "--warm-up", "1"]


def drawn(count: int = 16, image: int = 12, text: int = 20) -> Pairs:
    return Pairs(torch.randn(count, image), torch.randn(count, text), "mini", "mini", "")


def test_an_mlp_in_eval_mode_is_linear_layers_counted_norms_and_relu() -> None:
    made = Projector([5, 7, 3])
    made.train()(torch.randn(40, 5) * 3 + 1)  # BatchNorm counts
    state = {key: value.double().numpy() for key, value in made.eval().state_dict().items()}
    x = torch.randn(1, 5)  # one row alone, which BatchNorm in training refuses
    hidden = x.double().numpy() @ state["0.weight"].T + state["0.bias"]
    hidden = (hidden - state["1.running_mean"]) / np.sqrt(state["1.running_var"] + 1e-5)
    hidden = np.maximum(hidden * state["1.weight"] + state["1.bias"], 0)
    close(made(x).detach(), hidden @ state["4.weight"].T + state["4.bias"])
    maps = torch.randn(2, 5, 3, 4)
    close(made.places(maps)[1, :, 2, 1].detach(), made(maps[1, :, 2, 1][None])[0].detach())
    assert torch.equal(Projector([5]).places(maps), maps)


def test_a_head_is_attention_and_an_mlp_over_all_places() -> None:
    made = Head((5, 64, 3), 2).eval()
    state = {key: value.detach().double().numpy() for key, value in made.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return (x - x.mean(-1, keepdims=True)) / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    maps = torch.randn(2, 5, 3, 4)
    x = linear(maps[1].double().numpy().reshape(5, 12).T, "enter")
    for block in ("blocks.0", "blocks.1"):
        seen = norm(x, f"{block}.norm1")
        weight, bias = state[f"{block}.self_attn.in_proj_weight"], state[f"{block}.self_attn.in_proj_bias"]
        q, k, v = ((seen @ weight.T + bias)[:, part * 64 : part * 64 + 64] for part in range(3))
        heads = []
        for head in range(2):
            own = slice(head * 32, head * 32 + 32)
            likeness = np.exp(q[:, own] @ k[:, own].T / np.sqrt(32))
            heads.append(likeness / likeness.sum(1, keepdims=True) @ v[:, own])
        x = x + linear(np.concatenate(heads, axis=1), f"{block}.self_attn.out_proj")
        hidden = torch.from_numpy(linear(norm(x, f"{block}.norm2"), f"{block}.linear1"))
        x = x + linear((hidden * (1 + torch.erf(hidden / 2**0.5)) / 2).numpy(), f"{block}.linear2")
    close(made.places(maps)[1].detach().flatten(1).T, linear(norm(x, "norm"), "leave"))
    close(made(maps[:, :, 0, 0])[0].detach(), made.places(maps[:1, :, :1, :1])[0, :, 0, 0].detach())


def test_a_head_is_distilled_onto_a_tower_that_stays_as_it_was(tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)).save(
            tmp_path / "pictures" / f"{number}.png"
        )
    how = ["--images", str(tmp_path / "pictures"), "--out", str(tmp_path / "head.safetensors")]
    assert main(["distil", *how, "--steps", "2", "--width", "32", "--blocks", "1"]) == 0
    model = densevl.load_backbone(f"projected:{tmp_path / 'head.safetensors'}", device="cpu")
    tower = densevl.load_proxy("mini-sam", device="cpu")
    pixels = torch.randn(1, 3, 96, 96)
    features = tower.from_clip(pixels, tower.mean, tower.std)
    head = projector.read(tmp_path / "head.safetensors").image
    close(model.encode_dense(pixels).features, head.places(features))
    close(model.encode_text(["a dog"]), densevl.load_backbone("mini", device="cpu").encode_text(["a dog"]))
    (tmp_path / "none").mkdir()
    for wrong in (
        ["--width", "33"],
        ["--blocks", "0"],
        ["--teacher", "proxy:mini-sam"],
        ["--images", str(tmp_path / "none")],
    ):
        assert main(["distil", *how, "--steps", "1", *wrong]) == 2


def test_a_joined_model_embeds_whole_pictures_at_the_size_of_its_tower(tmp_path) -> None:
    mini = densevl.load_backbone("mini", device="cpu")
    same = Projector([128]).eval()
    load = partial(densevl.load_backbone, device="cpu")
    told = stamp(load_vision("mini", load), Words("mini", load))
    (tmp_path / "same.safetensors").write_bytes(projector.write(Joined(same, same, "mini", "mini", told, 10.0)))
    model = densevl.load_backbone(f"projected:{tmp_path / 'same.safetensors'}", device="cpu")
    pictures = [np.random.default_rng(0).integers(0, 256, (64, 200, 3), np.uint8)]
    close(embed_images(model, pictures), embed_images(mini, pictures))
    with pytest.raises(OptionError, match="reads the image tower of a CLIP"):
        densevl.Segmenter(model, background="foreground")
    with pytest.raises(ModelError, match="names no file"):
        densevl.load_backbone("projected:")


def test_a_head_learns_what_a_few_pictures_show() -> None:
    seen = Seen(*(torch.randn(4, width, *size) for size in ((3, 3), ()) for width in (6, 5)))
    losses = distil(seen, HeadPlan(blocks=1, width=32, steps=200, rate=3e-3))[1]
    assert losses[-1] < 0.3 < 0.8 < losses[0]


def test_the_loss_is_the_mean_of_both_cross_entropies() -> None:
    image, text = torch.randn(6, 4) * 3, torch.randn(6, 4)
    a, b = (part.double().numpy() for part in (image, text))
    total = 0.0
    for i in range(6):
        cosines = [
            [a[p] @ b[q] / (np.linalg.norm(a[p]) * np.linalg.norm(b[q])) for p, q in own]
            for own in ([(i, j) for j in range(6)], [(j, i) for j in range(6)])
        ]
        total += sum(np.log(np.exp(SCALE * np.array(row)).sum()) - SCALE * row[i] for row in cosines) / 12
    close(contrast(image, text), total)
    assert abs(SCALE - 14.284) < 1e-2


def test_alikeness_is_one_for_turned_and_scaled_vectors_and_small_for_others() -> None:
    x = torch.randn(300, 8)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    assert abs(alikeness(x, 3 * x @ turn + 5) - 1) < 1e-6
    assert alikeness(x, torch.randn(300, 8)) < 0.1
    a, b = (part - part.mean(0) for part in (x.double().numpy(), (x**2).double().numpy()))
    gram = [m @ m.T for m in (a, b)]  # the same by kernels
    want = (gram[0] * gram[1]).sum() / np.sqrt((gram[0] ** 2).sum() * (gram[1] ** 2).sum())
    assert abs(alikeness(x, x**2) - want) < 1e-9


@pytest.mark.parametrize("layers", [(0, 2), (2, 0), (1, 2)], ids=["text", "image", "both"])
def test_sixteen_pairs_are_learned_by_heart(layers: tuple[int, int]) -> None:
    pairs = drawn()
    plan = Plan(*layers, width=64, joint=24, steps=120, warm_up=5, rate=1e-2, dropout=0.0)
    joined, losses = train(pairs, plan)
    assert not joined.image.training
    cosines = (
        torch.nn.functional.normalize(joined.image(pairs.image), dim=1)
        @ torch.nn.functional.normalize(joined.text(pairs.text), dim=1).T
    )
    assert torch.equal(cosines.argmax(1), torch.arange(16))
    assert losses[-1] < 0.1 * losses[0]
    assert all(
        torch.equal(x, y)
        for x, y in zip(joined.text.parameters(), train(pairs, plan)[0].text.parameters(), strict=True)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    captions = {f"{number}.png": f"a picture of thing {number}" for number in range(4)}
    for name in captions:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(folder / name)
    (folder / CAPTIONS).write_text(json.dumps(captions))
    common = ["--images", str(folder), "--text", "mini", "--out", str(folder / "pairs.safetensors"), "--device", "cpu"]
    assert main(["features", *common]) == 0
    assert (
        main(["train", "--pairs", str(folder / "pairs.safetensors"), "--out", str(folder / "p.safetensors"), *QUICK])
        == 0
    )
    return folder


def test_patches_and_words_go_through_their_projectors(trained: Path) -> None:
    model, mini = (
        densevl.load_backbone(name, device="cpu") for name in (f"projected:{trained / 'p.safetensors'}", "mini")
    )
    joined = projector.read(trained / "p.safetensors")
    pixels = torch.randn(1, 3, 96, 64)
    close(model.encode_dense(pixels).features, mini.encode_dense(pixels).features)  # the image side is kept
    texts = ["a dog", "sky"]
    close(model.encode_text(texts), joined.text(mini.encode_text(texts)))
    assert model.encode_text([]).shape == (0, 128)
    assert model.text_fingerprint != mini.text_fingerprint
    result = densevl.Segmenter(model)(trained / "0.png", ["dog", "sky"])
    assert result.labels.shape == (40, 50)


def test_a_proxy_sees_for_words_that_another_model_reads(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.safetensors"
    common = ["features", "--images", str(trained), "--text", "mini", "--device", "cpu", "--out", str(out)]
    assert main([*common, "--vision", "proxy:mini-sam"]) == 0
    assert main(["train", "--pairs", str(out), "--out", str(tmp_path / "p.safetensors"), *QUICK]) == 0
    model = densevl.load_backbone(f"projected:{tmp_path / 'p.safetensors'}", device="cpu")
    pixels = torch.randn(2, 3, 128, 128)
    close(model.encode_image(pixels), model.encode_dense(pixels).features.mean((2, 3)))
    assert densevl.Segmenter(model)(trained / "0.png", ["dog", "sky"]).labels.shape == (40, 50)
    with pytest.raises(RecipeError, match="no attention to rewire"):
        model.encode_dense(pixels, "maskclip")


def test_compare_names_both_towers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--pairs", str(trained / "pairs.safetensors")]) == 0
    assert "mini + mini" in capsys.readouterr().out


def test_files_that_are_no_projectors_are_refused(trained: Path, tmp_path: Path) -> None:
    lightning = tmp_path / "ShareLock.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": Plan()}, lightning)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    foreign = tmp_path / "foreign.safetensors"
    joined = projector.read(trained / "p.safetensors")
    foreign.write_bytes(projector.write(joined._replace(stamp="of others")))
    uneven = tmp_path / "uneven.safetensors"
    uneven.write_bytes(projector.write(Joined(Projector([4]), Projector([6, 5]), "mini", "mini", "", 14.0)))
    for path, message in (
        (lightning, "Lightning checkpoint, with a config object"),
        (other, "not written by tools.projector"),
        (foreign, "trained on other weights"),
        (uneven, "projects to 4 and to 5"),
        (tmp_path / "none.safetensors", "does not exist"),
    ):
        with pytest.raises(WeightsError, match=message):
            densevl.load_backbone(f"projected:{path}", device="cpu")
    with pytest.raises(DensevlError, match="names its towers itself"):
        densevl.load_backbone(f"projected:{trained / 'p.safetensors'}", truncate_dim=4)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["features", "--vision", "photo"], "name a CLIP such as mini, or proxy:"),
        (["features", "--text", "photo"], "no text tower"),
        (["features", "--captions", "few.json"], "two at least"),
        (["train", "--text-layers", "0"], "neither side has layers"),
        (["train", "--batch", "1"], "at least 2"),
        (["train", "--dropout", "1"], "at least 0 and below 1"),
        (["train", "--decay", "-1"], "at least 0"),
        (["train", "--seed", "99999999999999999999"], "at most"),
        (["train", "--threads", "0"], "at least 1"),
        (["train", "--width", "0"], "at least 1"),
        (["train", "--warm-up", "-5"], "at least 0"),
        (["train", "--rate", "nan"], "above 0"),
        (["train", "--steps", "many"], "'many' is not a whole number"),
        (["train", "--out", "pairs.safetensors"], "is there already"),
        (["train", "--out", "a.ckpt"], "new .safetensors file"),
        (["train", "--out", "0.png/p.safetensors"], "cannot write"),
        (["features", "--out", "0.png"], "new .safetensors file"),
        (["scenes", "--count", "1"], "at least 2"),
        (["scenes", "--size", "0"], "at least 16"),
        (["scenes"], "not empty"),
        (["train", "--pairs", "p.safetensors"], "not written by tools.projector features"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    (trained / "few.json").write_text('{"0.png": "one"}')
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    given = [str(trained / part) if Path(part).suffix else part for part in command]
    usual = {"--images": trained, "--pairs": trained / "pairs.safetensors", "--out": tmp_path / "out.safetensors"}
    usual["--out"] = trained if command[0] == "scenes" else usual["--out"]
    wanted = {"features": ("--images", "--out"), "train": ("--pairs", "--out"), "scenes": ("--out",)}[command[0]]
    for option in wanted:
        given += [] if option in given else [option, str(usual[option])]
    assert main(given) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_pictures_that_cannot_be_read_are_left_out_and_status_is_3(tmp_path: Path, caplog) -> None:
    for number in range(3):
        Image.new("RGB", (96, 96), (80 * number, 9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / CAPTIONS).write_text(json.dumps({f"{number}.png": f"thing {number}" for number in range(3)}))
    common = ["--images", str(tmp_path), "--device", "cpu", "--out"]
    stored = str(tmp_path / "pairs.safetensors")
    assert main(["features", "--text", "mini", *common, stored]) == 3
    assert len(read(Path(stored)).image) == 2
    quick = ["--steps", "1", "--width", "32", "--blocks", "1"]
    assert main(["distil", *common, str(tmp_path / "head.safetensors"), *quick]) == 3
    assert [record.message for record in caplog.records if "1.png" in record.message]
    assert main(["train", "--pairs", stored, "--out", str(tmp_path / "p.safetensors"), *QUICK]) == 0
    (tmp_path / "2.png").unlink()
    assert main(["features", "--text", "mini", *common, str(tmp_path / "few.safetensors")]) == 2
    assert not (tmp_path / "few.safetensors").exists()


def test_a_diverged_training_writes_nothing_and_says_so(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tools.projector.train.contrast", lambda image, text: contrast(image, text) * float("nan"))
    out = tmp_path / "p.safetensors"
    assert main(["train", "--pairs", str(trained / "pairs.safetensors"), "--out", str(out), *QUICK]) == 2
    assert capsys.readouterr().err == "the training diverged: the loss is nan at step 1; take a lower rate\n"
    assert not out.exists()
