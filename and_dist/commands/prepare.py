"""Define `and-dist prepare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import BadImages, parse_bad_images


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the manifests, and of what is packed.")],
    source: Annotated[Path | None, typer.Argument(help="The data set as it is published.")] = None,
    download: Annotated[
        str | None, typer.Option(help="cifar10, cifar100, svhn or fashion_mnist, into OUT/source.")
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Write tars of at most 1 GiB.")] = False,
    resize: Annotated[int | None, typer.Option(help="With --pack: shorter side.")] = None,
    quality: Annotated[int | None, typer.Option(help="With --resize: JPEG quality (90).")] = None,
    raw: Annotated[int | None, typer.Option(help="Store pixels, this shorter side.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every image.")] = False,
    bad_images: BadImages = "stop",
    workers: Annotated[int, typer.Option(help="Processes; 0 means one a core.")] = 0,
) -> None:
    """Make a data set ready: manifests, and packs if asked for. Goes on where it was stopped."""
    from and_dist.data.index import BAD_IMAGES
    from and_dist.data.preparation import download as downloads
    from and_dist.data.preparation.prepare import Check, Job
    from and_dist.data.preparation.prepare import prepare as prepare_images
    from and_dist.data.transcode import PackOptions
    from and_dist.runs.console import Bars

    policy = parse_bad_images(bad_images)
    if (source is None) == (download is None):
        raise ValueError("say either SOURCE or --download NAME")
    options = PackOptions(pack, resize, quality, raw)
    if download in downloads.DOWNLOADS:  # all of these come as pixels
        options.refuse_for_pixels(f"--download {download}")
    if source is None:
        source = downloads.download(str(download), out / "source")
    check: Check | None = None
    if verify:  # DALI and torch take seconds to load
        from and_dist.data.preparation.verify import find_undecodable

        check = find_undecodable
    with Bars() as bars:
        cores, is_downloaded = workers or os.cpu_count() or 1, download is not None
        job = Job(source, out, options, policy, cores, bars, is_downloaded)
        splits = prepare_images(job, check)
    for name, images in splits.items():
        classes = f"{len(images.class_names)} classes" if images.class_names else "no labels"
        typer.echo(f"{out / name}: {len(images.index):,} images, {classes}")
        if images.ignored:
            typer.echo(f"ignored, since they are no images: {images.ignored}")
        if (out / name / BAD_IMAGES).exists():
            typer.echo(f"left out, and why: {out / name / BAD_IMAGES}")
