"""`and-dist`, and `torchrun ... -m and_dist`: the commands of one rank.

Exit status 2 and a sentence for what a user gave, 1 and a sentence for what the machine did, 75 for
what was stopped and goes on when started again.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from and_dist.commands.options import ConfigFiles, Force, Overrides
from and_dist.commands.plan import plan
from and_dist.config.load import load_config
from and_dist.distributed.launch_env import (
    SharedFailure,
    end_launcher,
    named_rank,
    names_first_of_node,
    names_first_rank,
    read_layout,
)
from and_dist.distributed.watchdog import SECONDS_BEYOND_STALL, TRY_AGAIN, Guard, Stopped
from and_dist.runs.console import Style
from and_dist.utils.formatting import safe_lines

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train image encoders without labels by Anchor Neighbourhood Discovery.",
)

SECONDS_FOR_THE_FIRST = 10.0


@app.callback()
def about() -> None:
    """Every command is a verb; `and-dist VERB --help` says more."""


@app.command()
def train(
    context: typer.Context,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what metrics.jsonl takes, as it comes.")
    ] = False,
) -> None:
    """Train one run, or go on with it: the same command continues what was interrupted."""
    if quiet and as_json:
        raise ValueError("say either --quiet or --json")
    style: Style = "quiet" if quiet else "json" if as_json else "auto"
    resolved = load_config(config or [], overrides or [])
    from and_dist.commands.train import run_training  # it takes seconds to load, a bad config none

    run_training(resolved, context.obj, style)


@app.command()
def discover(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    overrides: Overrides = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as r01-e0020; without it the newest.")
    ] = None,
    round_index: Annotated[
        int | None, typer.Option("--round", help="Without it the one that training comes to next.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is found.")] = None,
    force: Force = False,
) -> None:
    """Find the neighbourhoods of a saved bank, as training does, and write them as .npy files."""
    from and_dist.commands.discover import plan_study, run_study
    from and_dist.distributed.world import open_world
    from and_dist.runs.console import Display

    size = read_layout().size
    study = plan_study(run, checkpoint, round_index, out, overrides or [], size, force)
    with open_world(study.config.run.device, study.config.run.threads) as world:
        run_study(study, world, Display(is_shown=world.is_coordinator))


@app.command()
def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    overrides: Overrides = None,
    knn: Annotated[bool, typer.Option("--knn", help="Weighted kNN, by bank and anew.")] = False,
    linear: Annotated[
        bool, typer.Option("--linear", help="Linear classifiers on frozen layers.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="Of --linear, such as conv4,conv5; without it all.")
    ] = None,
    ten_crop: Annotated[
        bool, typer.Option("--ten-crop", help="--linear looks at ten views of a test image.")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as r01-e0020; without it the newest.")
    ] = None,
) -> None:
    """Measure a checkpoint by labels it never saw. The same command goes on with --linear."""
    from and_dist.commands.evaluate import plan_assessment, run_assessment
    from and_dist.distributed.collectives import failing_together
    from and_dist.distributed.world import open_world
    from and_dist.runs.console import Display
    from and_dist.runs.lock import hold_lock

    planned = plan_assessment(run, checkpoint, overrides or [], knn, linear, layers, ten_crop)
    settings = planned.config.run
    timeout = timedelta(seconds=settings.stall_seconds + SECONDS_BEYOND_STALL)
    with open_world(settings.device, settings.threads, timeout) as world, ExitStack() as held:
        with failing_together(world, "opening the folder of the evaluation"):
            if world.is_coordinator:
                held.enter_context(hold_lock(planned.folder, "evaluated", "wait for it or end it"))
        run_assessment(planned, world, Display(is_shown=world.is_coordinator), context.obj)


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of sweeps.")],
    format_name: Annotated[
        str, typer.Option("--format", help="markdown, csv or latex.")
    ] = "markdown",
    out: Annotated[Path | None, typer.Option(help="File; without it the terminal.")] = None,
    force: Force = False,
) -> None:
    """Put finished runs into the paper's tables, beside its figures, with means over seeds."""
    from and_dist.report.render_tables import FORMATS
    from and_dist.report.tables import collect
    from and_dist.utils.owned_files import check_output, recognise_output, write_file

    may_replace = recognise_output(force, is_named=True)
    if out is not None:
        check_output(out, "--out", may_replace)
    if format_name not in FORMATS:
        raise ValueError(f"--format {format_name} is not one of: {', '.join(FORMATS)}")
    text = FORMATS[format_name](collect(runs))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_file(out, text, may_replace)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another run beside it; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File; without it RUN/report.html.")] = None,
    follows: Annotated[
        bool, typer.Option("--follow", help="Serve it to this machine, again and again.")
    ] = False,
    port: Annotated[int, typer.Option(help="With --follow; 0 takes any that is free.")] = 0,
    every: Annotated[float, typer.Option(help="With --follow: seconds between two looks.")] = 10.0,
    force: Force = False,
) -> None:
    """Write one HTML page that shows what a run did and learned, and needs nothing else."""
    from and_dist.distributed.world import open_world
    from and_dist.report.build import gather, is_report, read_histories, write_page
    from and_dist.report.serve import Pages, follow
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import check_output, recognise_output

    if follows and out:
        raise ValueError("--follow serves a page and writes none: leave --out away")
    if not 0 <= port <= 65535 or every <= 0:
        raise ValueError(f"--port {port} --every {every:g}: ports end at 65535, and time goes on")
    histories, display = read_histories(run, compare or []), Display(is_shown=True)
    may_replace = recognise_output(force, out is not None, is_report)
    out = out or run / "report.html"
    if not follows:
        check_output(out, "--out", may_replace)
    with open_world("cpu") as world:
        if follows:
            follow(Pages(run, compare or [], world, display), port, every, display.say)
        size = write_page(histories, gather(histories[0], world, display.phase), out, may_replace)
    display.say(f"written to {out}, {size / 1e6:.1f} MB")


@app.command()
def neighbours(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    images: Annotated[list[Path], typer.Argument(help="Image files of your own.")],
    count: Annotated[int, typer.Option(help="Neighbours of each.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Picture file with all of them.")] = None,
    force: Force = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as r01-e0020; without it the newest.")
    ] = None,
) -> None:
    """Find the training images that a run holds most similar to images of your own."""
    from and_dist.commands import lookup
    from and_dist.distributed.world import open_world
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import recognise_output

    may_replace = recognise_output(force, is_named=True)
    lookup.check_sheet(sheet, may_replace)
    planned = lookup.plan_lookup(run, checkpoint, images, count)
    display = Display(is_shown=True, style="quiet" if as_json else "auto")
    with open_world("cpu") as world:
        answer = lookup.find_neighbours(planned, world, display)
        if sheet is not None:
            lookup.save_sheet(lookup.draw_sheet(answer), sheet, may_replace)
            display.say(f"drawn in {sheet}")
    if as_json:
        typer.echo(lookup.as_json(answer))
    display.show(lookup.as_table(answer))


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    folder: Annotated[Path, typer.Argument(help="Images: class folders, flat, or prepared.")],
    out: Annotated[Path, typer.Option(help="File for [N, D] float32, such as features.npy.")],
    bad_images: Annotated[str, typer.Option(help="stop or skip.")] = "stop",
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as r01-e0020; without it the newest.")
    ] = None,
    force: Force = False,
) -> None:
    """Write the features of any images, and their names beside them; under torchrun too."""
    from and_dist.checkpoint.reader import open_trained
    from and_dist.commands import lookup
    from and_dist.data.datasets import load_images
    from and_dist.distributed.world import open_world
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import recognise_output

    policy = bad_images_policy(bad_images)
    may_replace = recognise_output(force, is_named=True)
    lookup.check_features_file(out, may_replace)
    trained = open_trained(run, checkpoint)
    images = load_images(str(folder), None, "FOLDER", bad_images)
    settings = trained.config.run
    with open_world(settings.device, settings.threads) as world:
        display = Display(is_shown=world.is_coordinator)
        lookup.embed(trained, images, policy, out, may_replace, world, display)


def bad_images_policy(given: str) -> Literal["stop", "skip"]:
    if given not in ("stop", "skip"):
        raise ValueError(f"--bad-images {given} is not one of: stop, skip")
    return "stop" if given == "stop" else "skip"


@app.command()
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
    bad_images: Annotated[str, typer.Option(help="stop or skip.")] = "stop",
    workers: Annotated[int, typer.Option(help="Processes; 0 means one a core.")] = 0,
) -> None:
    """Make a data set ready: manifests, and packs if asked for. Goes on where it was stopped."""
    from and_dist.data.index import BAD_IMAGES
    from and_dist.data.preparation import download as downloads
    from and_dist.data.preparation.prepare import Check, Job
    from and_dist.data.preparation.prepare import prepare as prepare_images
    from and_dist.data.transcode import PackOptions
    from and_dist.runs.console import Bars

    policy = bad_images_policy(bad_images)
    if (source is None) == (download is None):
        raise ValueError("say either SOURCE or --download NAME")
    options = PackOptions(pack, resize, quality, raw)
    if download in downloads.DOWNLOADS:  # which are all of pixels
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
        if (out / name / BAD_IMAGES).exists():
            typer.echo(f"left out, and why: {out / name / BAD_IMAGES}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")],
    format_name: Annotated[
        str, typer.Option("--format", help="torchvision, safetensors or onnx.")
    ] = "safetensors",
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as r01-e0020; without it the newest.")
    ] = None,
    head: Annotated[bool, typer.Option(help="With the last layer, or what comes before.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for encoder and card.")] = None,
    force: Force = False,
) -> None:
    """Write the encoder of a checkpoint for other programs, with a card that says what it is."""
    from and_dist.commands.export import plan_export, run_export
    from and_dist.distributed.world import open_world

    planned = plan_export(run, checkpoint, format_name, head, out, force)
    with open_world("cpu") as world:
        run_export(planned, world)
    typer.echo(f"written to {planned.out}")


app.command()(plan)


def refuse(error: ValueError) -> NoReturn:
    """Mostly all ranks refuse the same. The first of each node says so at once; the others speak if
    nobody has ended them since, as torchrun does where the first has failed."""
    said = safe_lines(str(error))
    if names_first_rank():
        print(f"and-dist: {said}", file=sys.stderr)
    else:
        if not names_first_of_node():
            time.sleep(SECONDS_FOR_THE_FIRST)
        print(f"and-dist: rank {named_rank()}: {said}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    try:
        with Guard() as guard:
            app(obj=guard)
    except ValueError as error:
        refuse(error)
    except Stopped as request:
        if names_first_rank():
            print(f"and-dist: stopped by {request}; the same command goes on", file=sys.stderr)
        if request.ends_the_job:
            end_launcher()
        sys.exit(TRY_AGAIN)
    except SharedFailure as error:
        if names_first_rank():
            print(f"and-dist: {error}", file=sys.stderr)
        sys.exit(1)
    except (RuntimeError, OSError) as error:
        print(f"and-dist: rank {read_layout().rank}: {error}", file=sys.stderr)
        sys.exit(1)
