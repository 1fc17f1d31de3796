"""Checkpoints of the published code, as Python 2 wrote them."""

from __future__ import annotations

import pickletools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.pretrained import load_weights
from and_dist.models.published_run import read_published_run
from tests.python2_files import Discovered, checkpoint, pickled, saved, state_dict

ROWS, DIM = 9, 16


def fresh(seed: int, name: str = "cifar_resnet18") -> Encoder:
    return build_encoder(EncoderConfig(name=name, feature_dim=DIM), seed)


def net_of(encoder: Encoder, prefix: str) -> dict[str, Tensor]:
    """A network's tensors by the names of the published code."""
    renamed = {"trunk.": "", "head.": "linear.", "downsample": "shortcut"}
    net = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        net[prefix + name] = tensor
    return net


def published(encoder: Encoder, prefix: str = "module.", *, round_index: int = 1) -> bytes:
    net = net_of(encoder, prefix)
    parameters = {n: t for n, t in net.items() if not re.search("running|num_batches", n)}
    momentum = {
        name: torch.full_like(t, float(at)) for at, (name, t) in enumerate(parameters.items())
    }
    count = 3 if round_index else 0
    found = Discovered(
        torch.tensor([4, 0, 7])[:count],
        torch.tensor([[1], [2], [3]])[:count],
        torch.linspace(0, 1, ROWS),
        0.5,
    )
    bank_ND = torch.arange(ROWS * DIM, dtype=torch.float32).reshape(ROWS, DIM)
    return checkpoint(net, momentum, bank_ND, found, round_index=round_index, epoch=37)


def test_the_fixture_is_a_file_that_torch_reads_and_has_what_only_python_2_writes(
    tmp_path: Path,
) -> None:
    content = {"net": state_dict({"a": torch.arange(6.0).reshape(2, 3)}), "id": 140_245_000_000_000}
    file = tmp_path / "old.ckpt"
    file.write_bytes(saved(content))
    found: dict[str, Any] = torch.load(
        file, map_location="cpu", weights_only=False, encoding="latin1"
    )
    assert torch.equal(found["net"]["a"], torch.arange(6.0).reshape(2, 3))
    assert found["net"]._metadata == {"": {"version": 1}}
    assert found["id"] == 140_245_000_000_000
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(pickled(content)[0])}
    assert {"INT", "SHORT_BINSTRING", "BINPERSID", "BUILD"} <= opcodes


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_its_network_is_loaded(tmp_path: Path, prefix: str) -> None:
    theirs, ours = fresh(1), fresh(2)
    file = tmp_path / "0001-12500.ckpt"
    file.write_bytes(published(theirs, prefix))
    assert load_weights(ours, file).startswith(f"weights of {file}, of the published code: ")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("round_index", [0, 1])
def test_its_bank_neighbours_and_momentum_are_read(tmp_path: Path, round_index: int) -> None:
    encoder, file = fresh(1), tmp_path / "0001-12500.ckpt"
    file.write_bytes(published(encoder, round_index=round_index))
    run = read_published_run(file)
    assert (run.round_index, run.epochs, run.consistency) == (round_index, 37, 0.5)
    assert torch.equal(run.bank.load().flatten(), torch.arange(float(ROWS * DIM)))
    assert run.anchors_A.tolist() == ([4, 0, 7] if round_index else [])
    assert run.neighbours_AK.flatten().tolist() == ([1, 2, 3] if round_index else [])
    # In the order of the parameters, which is how the optimiser knows them.
    parameters = [name for name, _ in encoder.named_parameters()]
    assert sorted(run.momentum) == sorted(parameters)
    for at, name in enumerate(n for n in encoder.state_dict() if n in parameters):
        assert (run.momentum[name].load() == at).all(), name


def test_a_file_without_its_optimiser_has_no_momentum(tmp_path: Path) -> None:
    file = tmp_path / "0001-12500.ckpt"
    tensors = state_dict({"memory": torch.zeros(ROWS, DIM)})
    nothing = torch.empty(0, dtype=torch.int64)
    found = {"anchor_indexes": nothing, "neighbours": nothing, "entropy": torch.zeros(ROWS)}
    content = {
        "npc": tensors,
        "ANs_discovery": state_dict({**found, "consistency": torch.tensor(0.0)}),
        "round": 0,
        "epoch": 1,
    }
    file.write_bytes(saved(content))
    assert read_published_run(file).momentum == {}
    for name in content:
        file.write_bytes(saved({key: value for key, value in content.items() if key != name}))
        with pytest.raises(ValueError, match=f"is no checkpoint of the published code: .*'{name}'"):
            read_published_run(file)


def test_a_published_file_that_is_bent_is_read_or_refused(tmp_path: Path) -> None:
    file, content = tmp_path / "0001-12500.ckpt", published(fresh(1, "tiny"))
    chance = torch.Generator().manual_seed(0)
    for _ in range(60):
        at = int(torch.randint(0, len(content), (1,), generator=chance))
        bent = bytearray(content)
        bent[at] ^= 1 << int(torch.randint(0, 8, (1,), generator=chance))
        file.write_bytes(bytes(bent))
        refused = ""
        try:
            read_published_run(file)
        except ValueError as error:
            refused = str(error)
        assert not refused or "is no checkpoint of the published code" in refused
