"""Torch's archives as data: what training programs put beside tensors is no obstacle, and nothing of it runs."""

from __future__ import annotations

import datetime
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from densevl.weights import read_checkpoint


class Options(dict):
    """A class of a training program."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Parameter(torch.ones(()))
        self.register_buffer("size", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) * self.scale


def _training() -> dict[str, Any]:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": np.int64(3),
        "best": np.float64(0.5),
        "history": np.zeros(3),
        "args": Namespace(path=PurePosixPath("/data"), when=datetime.datetime(2024, 1, 1), lr=1e-3),
        "options": Options(a=1),
        "seen": defaultdict(list, a=[1]),
        "where": torch.device("cpu"),
        "kind": torch.float16,
        "optimizer": optimizer.state_dict(),
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in net.state_dict().items()),
    }


def _views() -> dict[str, torch.Tensor]:
    table = torch.randn(6, 4)
    return {"whole": table, "tied": table, "turned": table.T, "part": table[1:3, ::2], "bf16": table.bfloat16()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_training, lambda: {f"{key}": None for key in Net().state_dict()}),
        (Net, lambda: dict.fromkeys(Net().state_dict())),
        (lambda: {"model": Net()}, lambda: dict.fromkeys(Net().state_dict())),
        (lambda: nn.Sequential(nn.Linear(2, 2)), lambda: dict.fromkeys(["0.weight", "0.bias"])),
        (lambda: Net().state_dict(), lambda: dict.fromkeys(Net().state_dict())),
        (_views, lambda: dict.fromkeys(_views())),
    ],
    ids=["a training", "a module", "a module in a dict", "a sequence", "a state dict", "views"],
)
def test_the_tensors_are_those_that_were_saved(tmp_path: Path, content, expected) -> None:
    torch.manual_seed(0)
    made = content()
    torch.save(made, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt").tensors
    state = made if isinstance(made, dict) else made.state_dict()
    state = state.get("state_dict", state)
    state = state["model"].state_dict() if "model" in state else state
    assert found.keys() == expected().keys()
    for key, value in state.items():
        assert torch.equal(found[key.removeprefix("module.")], value)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 3))])
def test_a_program_is_read_as_its_tensors(tmp_path: Path, make, half) -> None:
    net = Net().eval()
    program = make(net)
    if half:
        program = program.half()
    torch.jit.save(program, str(tmp_path / "x.pt"))
    found = read_checkpoint(tmp_path / "x.pt").tensors
    wanted = program.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
