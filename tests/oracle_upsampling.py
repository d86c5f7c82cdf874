"""AnyUp, JAFAR and FeatUp's JBU written out in float64, with loops over pixels, places and heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def group_norm(x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
    out = np.empty_like(x)
    each = len(x) // 8
    for group in range(8):
        part = x[group * each : (group + 1) * each]
        out[group * each : (group + 1) * each] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out if scale is None or shift is None else out * scale[:, None, None] + shift[:, None, None]


def conv(x: Array, weight: Array, pad: str = "reflect") -> Array:
    """(C, H, W) by (O, C, k, k), the border mirrored, or zeros ("constant")."""
    side = weight.shape[-1]
    border = side // 2
    x = np.pad(x, ((0, 0), (border, border), (border, border)), mode=pad) if border else x  # type: ignore[call-overload]
    height, width = x.shape[1] - side + 1, x.shape[2] - side + 1
    out = np.zeros((len(weight), height, width))
    for top in range(side):
        for left in range(side):
            out += np.einsum("oc,chw->ohw", weight[:, :, top, left], x[:, top : top + height, left : left + width])
    return out


def average(x: Array, size: tuple[int, int]) -> Array:
    """Adaptive average pooling: place i is the mean of [floor(i L / n), ceil((i + 1) L / n))."""
    out = np.empty((len(x), *size))
    for row in range(size[0]):
        for col in range(size[1]):
            top, bottom = row * x.shape[1] // size[0], -(-(row + 1) * x.shape[1] // size[0])
            left, right = col * x.shape[2] // size[1], -(-(col + 1) * x.shape[2] // size[1])
            out[:, row, col] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def blocks(state: State, name: str, x: Array, parts: tuple[str, str, str, str]) -> Array:
    for index in (1, 2):
        norm, first, norm2, second = (f"{name}.{index}.{part}" for part in parts)
        y = conv(silu(group_norm(x, state[f"{norm}.weight"], state[f"{norm}.bias"])), state[f"{first}.weight"])
        y = conv(silu(group_norm(y, state[f"{norm2}.weight"], state[f"{norm2}.bias"])), state[f"{second}.weight"])
        shortcut = f"{name}.{index}.shortcut.weight"
        x = y + (conv(x, state[shortcut]) if shortcut in state else x)
    return x


def turned(x: Array, freqs: Array) -> Array:
    half = len(x) // 2
    out = np.empty_like(x)
    for row in range(x.shape[1]):
        for col in range(x.shape[2]):
            y = row / (x.shape[1] - 1) if x.shape[1] > 1 else 0.0
            z = col / (x.shape[2] - 1) if x.shape[2] > 1 else 0.0
            angle = y * freqs[0] + z * freqs[1]
            pixel = x[:, row, col]
            out[:, row, col] = pixel * np.cos(angle) + np.concatenate([-pixel[half:], pixel[:half]]) * np.sin(angle)
    return out


def rms(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean() + np.finfo(np.float64).eps) * weight


def seen(place: int, pixels: int, patches: int, window: float | None) -> range:
    if window is None:
        return range(patches)
    at = (np.float32(place) + np.float32(0.5)) / np.float32(pixels)
    low, high = (min(max(at + sign * np.float32(window), np.float32(0)), np.float32(1)) for sign in (-1, 1))
    return range(int(np.floor(low * np.float32(patches))), int(np.ceil(high * np.float32(patches))))


def attended(state: State, q: Array, k: Array, maps: Array, window: float | None) -> Array:
    at = "cross_decode.cross_attn."
    width = len(q)
    joint = state.get(f"{at}attention.in_proj_weight")
    wq = joint[:width] if joint is not None else state[f"{at}attention.q_proj_weight"]
    wk = joint[width : 2 * width] if joint is not None else state[f"{at}attention.k_proj_weight"]
    bias = state[f"{at}attention.in_proj_bias"]
    out = np.empty((len(maps), *q.shape[1:]))
    for row in range(q.shape[1]):
        for col in range(q.shape[2]):
            query = wq @ rms(q[:, row, col], state[f"{at}norm_q.weight"]) + bias[:width]
            places = [
                (y, x)
                for y in seen(row, q.shape[1], k.shape[1], window)
                for x in seen(col, q.shape[2], k.shape[2], window)
            ]
            keys = [wk @ rms(k[:, y, x], state[f"{at}norm_k.weight"]) + bias[width : 2 * width] for y, x in places]
            total = np.zeros(len(places))
            for head in range(4):
                own = slice(head * width // 4, (head + 1) * width // 4)
                total += softmax(np.array([query[own] @ key[own] for key in keys]) / np.sqrt(width // 4)) / 4
            out[:, row, col] = sum(share * maps[:, y, x] for share, (y, x) in zip(total, places, strict=True))
    return out


def unit(features: Array) -> Array:
    return features / np.maximum(np.sqrt((features**2).sum(axis=0)), 1e-12)


def anyup(state: State, image: Array, features: Array, maps: Array, size: tuple[int, int]) -> Array:
    parts = ("block.0", "block.2", "block.3", "block.5")
    seen_ = turned(
        blocks(state, "image_encoder", conv(image, state["image_encoder.0.weight"]), parts), state["rope.freqs"]
    )
    q = blocks(state, "query_encoder", conv(seen_, state["query_encoder.0.weight"]), parts)
    k = average(blocks(state, "key_encoder", conv(seen_, state["key_encoder.0.weight"]), parts), features.shape[1:])  # type: ignore[arg-type]
    basis = state["key_features_encoder.0.basis"]
    inside = conv(np.ones((1, *features.shape[1:])), np.ones((1, 1, *basis.shape[2:])), "constant")
    answers = [
        conv(channel[None], kernel[None], "constant")[0] / inside[0] for channel in unit(features) for kernel in basis
    ]
    kernels, channels = len(basis), len(features)
    columns = [softmax(np.stack(answers[column::channels]), axis=0) for column in range(channels)]
    assert all(len(column) == kernels for column in columns)
    said = blocks(state, "key_features_encoder", np.mean(columns, axis=0), parts)
    k = conv(np.concatenate([k, said]), state["aggregation.0.weight"])
    k = blocks(state, "aggregation", k, parts)
    q = conv(average(q, size), state["cross_decode.conv2d.weight"], "constant")
    return attended(state, q, k, maps, 0.1)


def jafar(state: State, image: Array, features: Array, maps: Array, size: tuple[int, int]) -> Array:
    parts = ("norm1", "conv1", "norm2", "conv2")
    seen_ = turned(
        blocks(state, "image_encoder", conv(image, state["image_encoder.0.weight"]), parts), state["rope.freqs"]
    )
    q = blocks(state, "query_encoder", conv(seen_, state["query_encoder.0.weight"]), parts)
    k = average(blocks(state, "key_encoder", conv(seen_, state["key_encoder.0.weight"]), parts), features.shape[1:])  # type: ignore[arg-type]
    said = blocks(state, "key_features_encoder", conv(unit(features), state["key_features_encoder.0.weight"]), parts)
    k = conv(said, state["sft_key.gamma.weight"]) * group_norm(k) + conv(said, state["sft_key.beta.weight"])
    q = conv(group_norm(average(q, size)), state["cross_decode.conv2d.weight"], "constant")
    return attended(state, q, k, maps, None)


def cubic(distance: float) -> float:
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def doubled(x: Array) -> Array:
    """Bicubic, twice as large."""
    for axis in (1, 2):
        length = x.shape[axis]
        rows = []
        for place in range(2 * length):
            at = (place + 0.5) / 2 - 0.5
            near = [int(np.floor(at)) + step for step in (-1, 0, 1, 2)]
            taken = [np.take(x, min(max(n, 0), length - 1), axis=axis) for n in near]
            rows.append(sum(cubic(at - n) * part for n, part in zip(near, taken, strict=True)))
        x = np.stack(rows, axis=axis)
    return x


def gelu(x: Array) -> Array:
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def twice(state: State, at: str, x: Array) -> Array:
    first = gelu(conv(x, state[f"{at}.0.weight"]) + state[f"{at}.0.bias"][:, None, None])
    return conv(first, state[f"{at}.3.weight"]) + state[f"{at}.3.bias"][:, None, None]


def jbu(state: State, image: Array, features: Array) -> Array:
    """The whole of FeatUp's stack: features (D, h, w) to (D, 16 h, 16 w)."""
    for stage in range(1, 5):
        at = f"up{stage}"
        guide = average(image, (2 * features.shape[1], 2 * features.shape[2]))
        keys = twice(state, f"{at}.range_proj", guide)
        around = np.pad(keys, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        large = np.pad(doubled(features), ((0, 0), (3, 3), (3, 3)), mode="reflect")
        height, width = guide.shape[1:]
        alike = np.empty((49, height, width))
        gauss = np.empty(49)
        for place in range(49):
            y, x = divmod(place, 7)
            alike[place] = (around[:, y : y + height, x : x + width] * keys).sum(axis=0)
            gauss[place] = np.exp(-(((y - 3) / 3) ** 2 + ((x - 3) / 3) ** 2) / (2 * state[f"{at}.sigma_spatial"] ** 2))
        weights = softmax(np.exp(state[f"{at}.range_temp"]) * alike, axis=0) * gauss[:, None, None]
        weights = weights / weights.sum(axis=0)
        weights = weights + 0.1 * twice(state, f"{at}.fixup_proj", np.concatenate([weights, guide]))
        features = np.zeros((len(features), height, width))
        for place in range(49):
            y, x = divmod(place, 7)
            features = features + weights[place] * large[:, y : y + height, x : x + width]
    last = conv(features, state["fixup_proj.1.weight"]) + state["fixup_proj.1.bias"][:, None, None]
    return features + 0.1 * last


def random_state(kind: str, width: int = 16, features: int = 12) -> dict[str, tuple[int, ...]]:
    """Names and shapes as they stand in the published files of a kind, in small."""
    if kind == "jbu":
        found: dict[str, tuple[int, ...]] = {
            "fixup_proj.1.weight": (features, features, 1, 1),
            "fixup_proj.1.bias": (features,),
        }
        for stage in range(1, 5):
            found |= {f"up{stage}.range_temp": (), f"up{stage}.sigma_spatial": ()}
            for part, (a, b, c) in {"range_proj": (3, 8, 8), "fixup_proj": (52, 49, 49)}.items():
                found |= {f"up{stage}.{part}.0.weight": (b, a, 1, 1), f"up{stage}.{part}.0.bias": (b,)}
                found |= {f"up{stage}.{part}.3.weight": (c, b, 1, 1), f"up{stage}.{part}.3.bias": (c,)}
        return found
    parts = {"anyup": ("block.0", "block.2", "block.3", "block.5"), "jafar": ("norm1", "conv1", "norm2", "conv2")}[kind]
    first = {
        "image_encoder": (width, 3, 1, 1),
        "query_encoder": (width, width, 1, 1),
        "key_encoder": (width, width, 1, 1),
    }
    if kind == "anyup":
        first["aggregation"] = (width, 2 * width, 3, 3)
    else:
        first["key_features_encoder"] = (width, features, 1, 1)
    found = {f"{name}.0.weight": shape for name, shape in first.items()}
    if kind == "anyup":
        found["key_features_encoder.0.basis"] = (width, 1, 5, 5)
        first["key_features_encoder"] = ()  # type: ignore[assignment]
    for name in first:
        for index in (1, 2):
            for part in parts:
                norm = part in (parts[0], parts[2])
                found[f"{name}.{index}.{part}.weight"] = (width,) if norm else (width, width, 1, 1)
                if norm:
                    found[f"{name}.{index}.{part}.bias"] = (width,)
    at = "cross_decode.cross_attn."
    found |= {"cross_decode.conv2d.weight": (width, width, 3, 3), "rope.freqs": (2, width)}
    found |= {f"{at}norm_q.weight": (width,), f"{at}norm_k.weight": (width,)}
    found |= {f"{at}attention.in_proj_bias": (3 * width,), f"{at}attention.out_proj.weight": (width, width)}
    found |= {f"{at}attention.out_proj.bias": (width,)}
    if kind == "anyup":
        return found | {f"{at}attention.in_proj_weight": (3 * width, width)}
    found |= {f"sft_key.{name}.weight": (width, width, 1, 1) for name in ("gamma", "beta")}
    found[f"{at}norm_v.weight"] = (features,)
    return found | {
        f"{at}attention.{letter}_proj_weight": (width, side)
        for letter, side in {"q": width, "k": width, "v": features}.items()
    }
