"""Define `and-dist embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import (
    BadImages,
    Checkpoint,
    Force,
    Run,
    Trust,
    announce,
    parse_bad_images,
)


def embed(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Images: class folders, flat, or prepared.")],
    out: Annotated[Path, typer.Option(help="File for [N, D] float32, such as features.npy.")],
    bad_images: BadImages = "stop",
    checkpoint: Checkpoint = None,
    force: Force = False,
    _trust: Trust = False,
) -> None:
    """Write the features of any images, and their names beside them; under torchrun too."""
    announce(run)
    from and_dist.checkpoint.reader import open_checkpoint
    from and_dist.data.datasets import load_images
    from and_dist.distributed.world import open_world
    from and_dist.evaluation.embed_images import Output, embed_images
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import recognise_output

    policy = parse_bad_images(bad_images)
    output = Output(out, recognise_output(force, is_named=True))
    output.check()
    opened = open_checkpoint(run, checkpoint)
    settings, decode_mb = opened.config.run, opened.config.data.decode_mb
    images = load_images(str(folder), None, "FOLDER", bad_images, decode_mb=decode_mb)
    with open_world(settings.device, settings.threads) as world:
        display = Display(is_shown=world.is_coordinator)
        embed_images(opened, images, policy, output, world, display)
