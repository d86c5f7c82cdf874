"""`Memory` against loops, on disk, and inside the pipelines that take it as a text transform."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import PHOTOS, close
from densevl.cli import app
from densevl.errors import LabelError, ModelError, OptionError, WeightsError
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.memories import build_memory, fit_beta
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.vocabulary import Background, LabelSet, TextOptions
from densevl.vocabulary.transforms.load import load_transform
from densevl.vocabulary.transforms.memory import Memory

M, E, C = 12, 10, 4
DRAW = torch.Generator().manual_seed(0)
U, V, TEXT = (F.normalize(torch.randn(n, E, generator=DRAW), dim=1) for n in (M, M, C))
SCENES = PHOTOS.parent / "scenes"
COLOURS = {"red": (210, 30, 30), "blue": (30, 60, 210), "lime": (120, 230, 40)}


def by_loops(rows: torch.Tensor, asked: torch.Tensor, given: torch.Tensor, memory: Memory) -> torch.Tensor:
    """The nearest by argsort, one row at a time, in float64."""
    found = []
    for row in rows.double():
        cosines = [float(row @ other) for other in asked.double()]
        best = sorted(range(len(asked)), key=lambda j: (-cosines[j], j))[: memory.neighbours]
        weights = np.exp([memory.sharpness * cosines[j] for j in best])
        taken = sum(w * given[j].double() for w, j in zip(weights / weights.sum(), best, strict=True))
        found.append(F.normalize(row + memory.beta * taken, dim=0))
    return torch.stack(found).float()


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_words_take_from_images_and_images_from_captions(neighbours) -> None:
    memory = Memory(U, V, 0.7, neighbours, 8.0)
    close(memory.apply(TEXT), by_loops(TEXT, V, U, memory))
    close(memory.enrich(3 * TEXT), by_loops(TEXT, U, V, memory))


def test_of_equally_near_captions_the_first_counts() -> None:
    twins = Memory(torch.stack([U[0], U[1], U[2]]), torch.stack([V[0], V[0], V[0]]), 1.0, 1)
    close(twins.apply(V[:1]), F.normalize(V[:1] + U[:1], dim=1))


def test_beta_of_zero_changes_nothing() -> None:
    memory = Memory(U, V, 0.0)
    assert memory.apply(TEXT) is TEXT
    assert torch.equal(memory.enrich(U), F.normalize(U, dim=1))


def test_an_image_of_the_memory_comes_nearer_to_its_caption_but_not_by_itself() -> None:
    memory = Memory(U, V, 0.5, 1)
    own = torch.arange(M)
    near, left_out = memory.enrich(U), memory.enrich(U, own)
    assert ((near * V).sum(dim=1) > (U * V).sum(dim=1)).all()
    for index in range(M):
        close(left_out[index : index + 1], memory.without(index).enrich(U[index : index + 1]))
    assert torch.equal(Memory(U[:1], V[:1], 0.5).enrich(U[:1], torch.tensor([0])), F.normalize(U[:1], dim=1))


def test_beta_is_the_likeliest_one() -> None:
    centres = F.normalize(torch.randn(C, E, generator=DRAW), dim=1)
    labels = torch.arange(24) % C
    features = F.normalize(centres[labels] + 0.1 * torch.randn(24, E, generator=DRAW), dim=1)
    helpful, misleading = Memory(centres, TEXT, 0.5, 1), Memory(centres.roll(1, 0), TEXT, 0.5, 1)
    assert helpful.choose(features, labels, TEXT, 20.0).beta > 0.5
    assert misleading.choose(features, labels, TEXT, 20.0).beta == 0
    own = Memory(features, TEXT[labels], 0.5, 24)
    assert own.choose(features, labels, TEXT, 20.0, torch.arange(24)).beta > 0
    alone = Memory(features[:C], TEXT, 0.5, 1)  # what is known of each class is the image that is judged
    assert alone.choose(features[:C], labels[:C], TEXT, 20.0, torch.arange(C)).beta < 2
    assert alone.choose(features[:C], labels[:C], TEXT, 20.0).beta == 2


def test_a_saved_memory_is_a_text_transform(tmp_path) -> None:
    memory = Memory(U, V, 0.3, 5, 4.0)
    again = load_transform(memory.save(tmp_path / "memory.safetensors"))
    assert isinstance(again, Memory)
    assert (again.beta, again.neighbours, again.sharpness) == (0.3, 5, 4.0)
    assert again.fingerprint == memory.fingerprint
    close(again.apply(TEXT), memory.apply(TEXT))
    other = Memory(U, V, 0.4, 5, 4.0)
    assert other.fingerprint != memory.fingerprint
    from safetensors.torch import save_file

    save_file({**memory.state(), "memory.images": U[:3].clone()}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="unusable memory"):
        load_transform(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: Memory(U[:3], V), r"give \(M, E\) of both"),
        (lambda: Memory(U[:0], V[:0]), "M above 0"),
        (lambda: Memory(0 * U, V), "zeros"),
        (lambda: Memory(U, V, -1.0), "beta is -1"),
        (lambda: Memory(U, V, neighbours=0), "neighbours 0"),
        (lambda: Memory(U, V).choose(U[:, :3], torch.zeros(M).long(), TEXT), "features"),
    ],
)
def test_what_cannot_be_is_refused(act, match) -> None:
    with pytest.raises(OptionError, match=match):
        act()


@pytest.fixture
def folder(tmp_path):
    """Squares of three colours, a caption beside each."""
    for name, colour in COLOURS.items():
        for number in range(2):
            path = tmp_path / "pairs" / f"{name}{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), tuple(max(0, c - 20 * number) for c in colour)).save(path)
            path.with_suffix(".txt").write_text(f"a {name} square\n")
    return tmp_path / "pairs"


def test_a_folder_becomes_a_memory_that_pipelines_take(tiny, folder) -> None:
    memory = build_memory(folder, tiny, beta=1.0)
    assert len(memory) == 6
    captions = {path.name: path.with_suffix(".txt").read_text().strip() for path in folder.glob("*.png")}
    (folder / "captions.json").write_text(json.dumps(captions))
    close(build_memory(folder, tiny).images, memory.images)
    rgb = np.asarray(Image.open(folder / "red0.png"))
    text, plain = TextOptions(transform=memory), {"background": "none", "use_cache": False}
    asked, none = LabelSet.parse(["red", "blue"]), Background()
    rows = Segmenter(tiny, text=text, **plain).embed_text(asked, none).vectors
    close(rows, memory.apply(Segmenter(tiny, **plain).embed_text(asked, none).vectors))
    assert FewShot(tiny, text=text, **plain)(rgb, ["red", "blue"]).names == ("red", "blue")
    fitted = fit_beta(memory, tiny, {name: sorted(folder.glob(f"{name}*.png")) for name in COLOURS})
    assert fitted.beta in (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
    with pytest.raises(OptionError, match="embeddings of 10 numbers"):
        Segmenter(tiny, text=TextOptions(transform=Memory(U, V)), **plain)


def test_pairs_that_are_none_are_refused(tiny, folder) -> None:
    (folder / "red0.txt").unlink()
    with pytest.raises(LabelError, match=r"red0\.txt next to it"):
        build_memory(folder, tiny)
    with pytest.raises(LabelError, match="an image and a caption"):
        build_memory([], tiny)
    with pytest.raises(LabelError, match="none of them empty"):
        build_memory([(folder / "red1.png", " ")], tiny)


def test_a_model_without_a_joint_space_has_no_memory(folder) -> None:
    from densevl import load_backbone

    with pytest.raises(ModelError, match="cannot compare whole images with words"):
        build_memory(folder, load_backbone("photo"))


def test_the_command_writes_what_text_transform_reads(folder, tmp_path) -> None:
    out = tmp_path / "memory.safetensors"
    examples = tmp_path / "examples"
    for name in COLOURS:
        (examples / name).mkdir(parents=True)
        (folder / f"{name}0.png").replace(examples / name / "0.png")
    given = ["fewshot", "memory", str(folder), "--model", "mini", "--out", str(out)]
    done = CliRunner().invoke(app, [*given, "--examples", str(examples)])
    assert done.exit_code == 0, done.stderr
    assert "3 pairs, beta" in " ".join(done.stdout.split())
    done = CliRunner().invoke(app, [*given, "--beta", "0.3", "--examples", str(examples)])
    assert (done.exit_code, "leave one of them out" in " ".join(done.stderr.split())) == (2, True)
    done = CliRunner().invoke(app, [*given, "--beta", "3"])
    told = " ".join(done.stderr.split())
    assert (done.exit_code, "outweighs the word" in told, "an earlier call learned" in told) == (4, True, True)
    (tmp_path / "mine.txt").write_text("mine")
    done = CliRunner().invoke(app, [*given[:-1], str(tmp_path / "mine.txt")])
    assert done.exit_code in (2, 4), "a file of somebody else is not overwritten"
    scene = str(SCENES / "wood.png")
    asked = ["segment", scene, "--labels", "penguin,red", "--model", "mini", "--text-transform", str(out)]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
