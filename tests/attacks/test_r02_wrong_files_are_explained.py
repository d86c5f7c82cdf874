"""R2: whatever is wrong with a weights file, every reader says it in the same single line, and soon."""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from conftest import TINY, random_clip, wrap
from densevl import digest, fitted
from densevl.anomaly.scoring import Scoring
from densevl.anomaly.storage import FORMAT as DETECTOR
from densevl.anomaly.storage import read as read_detector
from densevl.anomaly.storage import scoring_facts
from densevl.anomaly.trained.adapters import FORMAT as ADAPTERS
from densevl.anomaly.trained.adapters import QueryAdapter, VisualAdapter, load_adapters
from densevl.backbones import load_backbone
from densevl.backbones.mini import IDS, TABLE, Mini
from densevl.backbones.photo import efficientnet, minilm
from densevl.backbones.proxies import DinoiserHeads, load_proxy
from densevl.errors import DensevlError, MissingExtraError, WeightsError
from densevl.proposals.sam.checkpoint import load_sam
from densevl.proposals.sam.mini_sam import SamConfig, build_sam, load_mini_sam
from densevl.regions.operators.trained import trained
from densevl.regions.san import San
from densevl.weights import read_checkpoint
from densevl.weights.reading import MOST_HEADER, MOST_TENSORS
from region_weights import alpha_state, prompted_state, san_state

NAME = "some weights.safetensors"  # what is in it says what it is
MINI = {key: value for key, value in TINY.items() if key != "quick_gelu"}
SAM = SamConfig(image=32, patch=8, width=16, depth=1, channels=16, decoder_mlp=16, mask_channels=4, iou_width=8)

Reader = Callable[[Path], Any]


@pytest.fixture(scope="module")
def clip() -> Any:
    return wrap(random_clip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    return place


def _detector(path: Path) -> Any:
    own = digest.of_file(path) if path.is_file() else ""
    facts = {"format": DETECTOR, "scoring": scoring_facts(Scoring("any")), "tensors_sha256": own}
    path.with_suffix(".json").write_text(json.dumps({**facts, "facts_sha256": fitted.stamp(facts)}))
    return read_detector(path)


READERS: dict[str, Callable[[Any, Path], Reader]] = {
    "clip": lambda clip, folder: lambda path: load_backbone(str(folder), path, device="cpu"),
    "mini": lambda clip, folder: Mini,
    "mini-sam": lambda clip, folder: load_mini_sam,
    "sam": lambda clip, folder: load_sam,
    "proxy from a file": lambda clip, folder: lambda path: load_proxy(path, device="cpu"),
    "proxy of timm": lambda clip, folder: lambda path: load_proxy("test_vit", path, "cpu"),
    "proxy of sam": lambda clip, folder: lambda path: load_proxy("sam_vit_b", path, "cpu"),
    "dinoiser": lambda clip, folder: DinoiserHeads.load,
    "alpha": lambda clip, folder: lambda path: trained(clip, "alpha", path),
    "crop_prompted": lambda clip, folder: lambda path: trained(clip, "crop_prompted", path),
    "san": lambda clip, folder: lambda path: San(clip, path),
    "efficientnet": lambda clip, folder: efficientnet.build,
    "minilm": lambda clip, folder: lambda path: minilm.MiniLM(weights=path),
    "adapters": lambda clip, folder: lambda path: load_adapters(path, "tiny", "0" * 64),
    "detector": lambda clip, folder: _detector,
    "plain": lambda clip, folder: read_checkpoint,
}


# Damage ---------------------------------------------------------------------------------------------------------------


def torch_file(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def safetensors_file(header: Any, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes] = lambda name, data: data, **how: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zipped({name: change(name, archive.read(name)) for name in archive.namelist()}, **how)


def pickled(content: bytes) -> bytes:
    return zipped({"x/data.pkl": content, "x/version": b"3"})


def stored(held: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int | None = None) -> bytes:
    """A checkpoint of one float tensor whose storage has `held` numbers, with sizes that may be wrong."""
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return (
                ("storage", torch.FloatStorage, "0", "cpu", held if count is None else count) if thing is MARK else None
            )

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (MARK, offset, size, stride, False, {})

    Pickler(buffer, 2).dump({"a": Tensor()})
    return zipped({"x/data.pkl": buffer.getvalue(), "x/data/0": bytes(4 * held)})


MARK = object()


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a weights file ran code')",)


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def one(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


ONE = torch.ones(1)
MANY = MOST_TENSORS + 1
WIDE = torch.zeros(1).expand(10**13)  # forty terabytes in a few hundred bytes

DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run 'git lfs pull'"),
    "web page": (lambda: b"\r\n<!DOCTYPE html><html>", "is a web page"),
    "text": (lambda: b"hello world, I am not weights", "header is malformed"),
    "noise": (lambda: b"\xff" * 100, "header is malformed"),
    "numpy": (lambda: b"\x93NUMPY" + bytes(100), "header is malformed"),
    "plain pickle": (lambda: pickle.dumps({"a": 1}, 4), "is a plain pickle"),
    "old plain pickle": (lambda: pickle.dumps({"a": 1}, 2), "is a plain pickle"),
    # safetensors
    "a huge header": (lambda: struct.pack("<Q", 2**63) + b"{}", "header is malformed"),
    "a header over the limit": (lambda: safetensors_file(b"{" + b" " * MOST_HEADER + b"}"), "header is malformed"),
    "a cut header": (lambda: struct.pack("<Q", 10**6) + b'{"a"', "its header is incomplete"),
    "cut values": (lambda: save({"a": torch.ones(100)})[:-20], "is damaged"),
    "values too many": (lambda: save({"a": torch.ones(100)}) + b"x", "is damaged"),
    "a header of noise": (lambda: safetensors_file(b"{" + b"\x80" * 40 + b"}"), "is damaged"),
    "a deep header": (lambda: safetensors_file(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "is damaged"),
    "a deep shape": (lambda: safetensors_file(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"), "is damaged"),
    "an unknown type": (lambda: safetensors_file(one("X9"), bytes(4)), "is damaged"),
    "terabytes": (lambda: safetensors_file(one(shape=(10**13,)), bytes(4)), "is damaged"),
    "more than all memory": (lambda: safetensors_file(one(shape=(2**32, 2**32, 2**32)), bytes(4)), "is damaged"),
    "a negative shape": (lambda: safetensors_file(one(shape=(-1,)), bytes(4)), "is damaged"),
    "offsets outside": (lambda: safetensors_file(one(offsets=(0, 400)), bytes(4)), "is damaged"),
    "crossed offsets": (lambda: safetensors_file(one(offsets=(4, 0)), bytes(4)), "is damaged"),
    "too many tensors": (
        lambda: safetensors_file({f"{n}": one(offsets=(4 * n, 4 * n + 4))["a"] for n in range(MANY)}, bytes(4 * MANY)),
        "the limit is 20,000",
    ),
    # torch
    "a damaged program": (lambda: zipped({"model/constants.pkl": b"x", "model/data.pkl": b"x"}), "is damaged"),
    "another archive": (lambda: zipped({"x": b"y"}), "is a zip archive"),
    "a cut checkpoint": (lambda: torch_file({"a": torch.ones(1000)})[:-3000], "its end is missing"),
    "a checkpoint without its storage": (
        lambda: zipped({"x/data.pkl": zipfile.ZipFile(io.BytesIO(torch_file({"a": ONE}))).read("archive/data.pkl")}),
        "is damaged",
    ),
    "a compressed checkpoint": (
        lambda: repacked(torch_file({"a": torch.ones(1000)}), how=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "a pickle bomb": (lambda: zipped({"x/data.pkl": bytes(10**7)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "a damaged pickle": (
        lambda: repacked(torch_file({"a": ONE}), lambda name, data: data[:-9] if name.endswith("data.pkl") else data),
        "is damaged",
    ),
    "code": (lambda: torch_file({"state_dict": Bomb()}), "holds no tensors"),
    "code alone": (lambda: torch_file(Bomb()), "holds no tensors"),
    "a module without tensors": (lambda: torch_file(torch.nn.ReLU()), "holds no tensors"),
    "nothing": (lambda: torch_file({}), "holds no tensors"),
    "a huge text": (lambda: pickled(b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."), "is damaged"),
    "a huge number of objects": (lambda: pickled(b"\x80\x02}r\xff\xff\xff\xff."), "is damaged"),
    "a storage outside": (lambda: stored(1, 0, (1,), (1,), count=10**9), "is damaged"),
    "a tensor outside": (lambda: stored(4, 3, (2,), (1,)), "is damaged"),
    "a stride outside": (lambda: stored(4, 0, (2,), (10**12,)), "is damaged"),
    "a negative stride": (lambda: stored(4, 0, (2,), (-1,)), "is damaged"),
    "a list": (lambda: torch_file([1, 2]), "holds a list, not a dict"),
    "a tensor": (lambda: torch_file(ONE), "holds a Tensor, not a dict"),
    "a container of itself": (lambda: torch_file(cyclic()), "dicts within dicts"),
    "names that are numbers": (lambda: torch_file({0: ONE, 1: ONE}), "names a tensor by the int 0"),
    "names that are tuples": (lambda: torch_file({("a", 1): ONE}), "names a tensor by the tuple"),
    "sparse": (lambda: torch_file({"a": torch.eye(3).to_sparse()}), "holds a sparse or nested tensor ('a')"),
    "meta": (lambda: torch_file({"a": torch.ones(2, device="meta")}), "holds a meta tensor"),
    "quantized": (
        lambda: torch_file({"a": torch.quantize_per_tensor(ONE, 1.0, 0, torch.quint8)}),
        "holds a quantized tensor",
    ),
    "a tensor larger than its values": (lambda: torch_file({"a": WIDE}), "larger than its values"),
    "too many storages": (lambda: zipped({f"x/data/{n}": b"" for n in range(MANY)}), "the limit is 20,000"),
    "too many names": (
        lambda: torch_file({f"{'long' * 99}{n}": ONE for n in range(MANY)}),
        "more names than any model",
    ),
    "old": (lambda: torch_file({0: ONE}, _use_new_zipfile_serialization=False), "by the int 0"),
    "old and cut": (lambda: torch_file({"a": ONE}, _use_new_zipfile_serialization=False)[:-3], "is damaged"),
    "old and cut early": (lambda: torch_file({"a": ONE}, _use_new_zipfile_serialization=False)[:90], "is damaged"),
    "old with code": (lambda: torch_file({"a": Bomb()}, _use_new_zipfile_serialization=False), "more than plain"),
    "old with too many": (
        lambda: torch_file({f"{n}": ONE[:] for n in range(MANY)}, _use_new_zipfile_serialization=False),
        "the limit is 20,000",
    ),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("damaged")
    warnings.simplefilter("ignore")  # torch deprecates some of the kinds
    for index, (make, _) in enumerate(DAMAGE.values()):
        (place / str(index)).mkdir()
        (place / str(index) / NAME).write_bytes(make())
    return place


def refusal(read: Reader, path: Path) -> str:
    try:
        with pytest.raises(WeightsError) as caught:
            read(path)
    except MissingExtraError as error:
        pytest.skip(str(error))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@functools.cache
def said_of(path: Path) -> str:
    """What the plain reader says of a file, once for all readers that are compared with it."""
    return refusal(read_checkpoint, path)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_the_same_of_a_damaged_file(damaged: Path, clip, folder, reader: str, damage: str) -> None:
    path = damaged / str(list(DAMAGE).index(damage)) / NAME
    text = refusal(READERS[reader](clip, folder), path)
    assert text == said_of(path)
    assert text.startswith(f"weights file '{path}' cannot be read: it ")
    assert DAMAGE[damage][1] in text


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_the_same_of_a_path_that_is_no_file(tmp_path: Path, clip, folder, reader: str) -> None:
    read = READERS[reader](clip, folder)
    (tmp_path / "folder.safetensors").mkdir()
    for name, reason in (("folder.safetensors", "is a folder"), ("none\n.safetensors", "does not exist")):
        if reader == "sam":  # it may be a name as well as a path
            with pytest.raises(DensevlError, match="no SAM checkpoint"):
                read(tmp_path / name)
        else:
            assert reason in refusal(read, tmp_path / name)


def test_of_many_keys_that_lack_or_are_too_many_five_are_listed(tmp_path: Path, clip, folder) -> None:
    state = {f"layers.{number}.{key}": value for number, (key, value) in enumerate(clip.model.state_dict().items())}
    (tmp_path / "x.safetensors").write_bytes(save(state))
    text = refusal(READERS["clip"](clip, folder), tmp_path / "x.safetensors")
    for what in ("missing", "unexpected"):
        listed = re.search(rf"[\d,]+ {what} \((.*?)\)", text)
        assert listed, text
        assert len(listed[1].removesuffix(", ...").split(", ")) == 5
        assert listed[1].endswith(", ...")


# Files of the right kind with something odd in them ------------------------------------------------------------------


def tiny_vit() -> torch.nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=0, reg_tokens=2, init_values=1.0
    )


def compact(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = dict(model.state_dict())
    return {**state, TABLE: state[TABLE][:6].clone(), IDS: torch.arange(5, dtype=torch.int32)}


def adapters() -> dict[str, torch.Tensor]:
    parts = {"visual": VisualAdapter(8), "query": QueryAdapter([6, 6])}
    tensors = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return {**tensors, "static": torch.ones(2, 8), "learned": torch.ones(2, 8)}


def detector() -> dict[str, torch.Tensor]:
    return {"rows.a": torch.ones(3, 4), "owner.a": torch.zeros(3, dtype=torch.int64), "prototypes": torch.ones(2, 4)}


def sam() -> torch.nn.Module:
    pytest.importorskip("segment_anything", reason="SAM needs the extra 'sam'")
    return build_sam(SAM)


def with_windows() -> dict[str, torch.Tensor]:
    from segment_anything.modeling import ImageEncoderViT

    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 8}
    encoder = ImageEncoderViT(**sizes, use_rel_pos=True, window_size=4, global_attn_indexes=(1,))
    return {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}


VALID: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], dict[str, str]]] = {
    "clip": (lambda: random_clip().state_dict(), {}),
    "mini": (lambda: compact(random_clip()), {"model_cfg": json.dumps(MINI), "patch_scale": "10.0"}),
    "mini-sam": (lambda: sam().state_dict(), {"sam_config": SAM.to_json()}),
    "proxy from a file": (lambda: tiny_vit().state_dict(), {}),
    "proxy of timm": (lambda: timm.create_model("test_vit", num_classes=0).state_dict(), {}),
    "proxy of sam": (lambda: with_windows() if sam() else {}, {}),
    "dinoiser": (
        lambda: {
            "obj_proj.weight": torch.ones(4, 8, 3, 3),
            "obj_proj.bias": torch.ones(4),
            "bkg_decoder.weight": torch.ones(1, 8, 1, 1),
            "bkg_decoder.bias": torch.ones(1),
        },
        {},
    ),
    "alpha": (alpha_state, {}),
    "crop_prompted": (lambda: {f"visual.{key}": value for key, value in prompted_state().items()}, {}),
    "san": (san_state, {}),
    "adapters": (
        adapters,
        {"format": ADAPTERS, "fingerprint": "0" * 64, "model": "x", "layers": "[1, 2]", "temperature": "0.01"},
    ),
    "detector": (detector, {}),
}

ODD: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "gone": lambda x: None,
    "a number": lambda x: torch.ones((), dtype=x.dtype),
    "nothing": lambda x: torch.ones(0, dtype=x.dtype),
    "nothing of the same rank": lambda x: torch.ones([0] * x.ndim, dtype=x.dtype),
    "half": lambda x: x[: len(x) // 2] if x.ndim else torch.ones(2),
    "twice": lambda x: torch.cat([x, x]) if x.ndim else torch.ones(2),
    "of a higher rank": lambda x: x[None],
    "turned": lambda x: x.mT.contiguous() if x.ndim > 1 else x[None],
    "long": lambda x: torch.ones([70_000, *[1] * (x.ndim - 1)]),
    "wide": lambda x: torch.ones([*[1] * (x.ndim - 1), 70_000]),
    "text of numbers": lambda x: torch.ones(x.shape, dtype=torch.uint8),
    "complex": lambda x: torch.ones(x.shape, dtype=torch.complex64),
}
LENIENT = ("proxy from a file", "proxy of sam", "san", "detector", "dinoiser")  # read what they need
SIZES = [0, -1, 10**12, 2**70, float("nan"), "x", []]


def kind(x: torch.Tensor) -> tuple[bool, bool]:
    return x.is_floating_point(), x.is_complex()


def loads_or_one_line(read: Reader, path: Path) -> bool:
    """Whether it loads; if not, that one line says why."""
    try:
        read(path)
    except DensevlError as error:
        text = str(error)
    else:
        return True
    assert "\n" not in text
    assert len(text) < 700
    return False


@functools.cache
def valid(reader: str) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in VALID[reader][0]().items()}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", VALID)
def test_one_odd_tensor_is_one_line_and_takes_no_memory(tmp_path: Path, clip, folder, reader: str, odd: str) -> None:
    state, header, read = valid(reader), VALID[reader][1], READERS[reader](clip, folder)
    if odd == "gone" and reader != "proxy of sam":  # which is of another size than the name says
        (tmp_path / "whole.safetensors").write_bytes(save(state, header))
        read(tmp_path / "whole.safetensors")
    keys = list(state)
    for key in {*keys[:: max(1, len(keys) // 6)], *keys[:3]}:
        value = ODD[odd](state[key])
        changed = {**state, key: value} if value is not None else {k: v for k, v in state.items() if k != key}
        path = tmp_path / f"{keys.index(key)}.safetensors"
        path.write_bytes(save(changed, header))
        loaded = loads_or_one_line(read, path)
        same = value is not None and value.shape == state[key].shape and kind(value) == kind(state[key])
        number = key == "logit_scale" and value is not None and value.numel() == 1  # in a shape of its own
        assert loaded == same or number or reader in LENIENT


@pytest.mark.parametrize("reader", ["mini", "mini-sam", "adapters"])
def test_odd_sizes_in_a_header_are_one_line_and_take_no_memory(tmp_path: Path, clip, folder, reader: str) -> None:
    make, header = VALID[reader]
    read, path, state = READERS[reader](clip, folder), tmp_path / "x.safetensors", make()
    texts: list[dict[str, str]] = [
        {**header, key: text} for key in header for text in ("", "{}", "[" * 10**5, "null", "1")
    ]
    for name, text in header.items():
        try:
            content = json.loads(text)
        except ValueError:
            continue
        for change in changes(content):
            texts.append({**header, name: json.dumps(change)})
    for text in texts:
        path.write_bytes(save(state, text))
        loads_or_one_line(read, path)


def changes(content: Any) -> list[Any]:
    """A JSON value with each of its parts replaced by each of `SIZES` in turn."""
    if isinstance(content, dict):
        parts = content.items()
        return [{**content, key: new} for key, value in parts for new in [*SIZES, *changes(value)]] + [
            {k: v for k, v in parts if k != key} for key in content
        ]
    if isinstance(content, list):
        return [[*content[:at], new, *content[at + 1 :]] for at, value in enumerate(content) for new in changes(value)]
    return list(SIZES)
