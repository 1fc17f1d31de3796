"""Checkpoints as the published code would have written them of our own runs."""

from __future__ import annotations

from pathlib import Path

from tests import python2_files
from tests.python2_files import Discovered
from tests.ranks.runs import checkpoint_of


def their_name(name: str) -> str:
    """Their name of a tensor of our encoder, as DataParallel puts it."""
    ours = name.removeprefix("trunk.").replace("head.", "linear.").replace("downsample", "shortcut")
    return f"module.{ours}"


def publish(folder: Path, file: Path, consistency: float, *, round_index: int, epoch: int) -> None:
    """Write the newest checkpoint of a run of ours as the published code would have saved it."""
    tensors = checkpoint_of(folder)
    of = {
        prefix: {
            their_name(name.removeprefix(prefix)): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        for prefix in ("encoder.", "momentum.encoder.")
    }
    anchors_A = tensors["anchors"]
    found = Discovered(anchors_A, tensors["neighbours"][anchors_A], tensors["entropy"], consistency)
    content = python2_files.checkpoint(
        of["encoder."],
        {name: of["momentum.encoder."][name] for name in of["encoder."]},
        tensors["bank"],
        found,
        round_index=round_index,
        epoch=epoch,
    )
    file.write_bytes(content)
