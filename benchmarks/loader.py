"""Measure the training images per second that the loader brings from files, packs and caches.

    python -m benchmarks.loader [--smoke] [--json FILE]

Images come from JPEG files of 500 x 375 and leave at 224 x 224, antialiased, with the whole
ImageNet augmentation: by DALI with our own parameters, and by torchvision v2 in a DataLoader with
its best number of workers, from the same files. Packs, raw pixels and the cache are measured too,
DALI's graph up to each of its operators, and the changes of colour by both models of hue. The floor
is the machine's own rate of decoding whole JPEGs, for packs by their bytes. With an NVIDIA GPU the
same is measured with decoding and all later operators on it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2 import functional as tv

from and_dist.config.schema import DataConfig
from and_dist.data.augment import hue_rotation, training_views
from and_dist.data.cache import cache_in_memory
from and_dist.data.colour import ColourMaps
from and_dist.data.datasets import index_folder
from and_dist.data.hsv_jitter import HsvJitter
from and_dist.data.index import ImageIndex
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.preparation.prepare import Job, prepare
from and_dist.data.stores import ArchiveStore
from and_dist.data.transcode import PackOptions
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World, open_world
from benchmarks.common.harness import Benchmark, parse_arguments
from benchmarks.common.images import write_photos
from benchmarks.common.memory import extra_family_peak_mb
from benchmarks.common.peers import TorchvisionImages, open_loader, training_transform

BATCH = 64
SMALL_FILES = "torchvision tensors, 256-px files"
CONFIG = DataConfig(image_size=224, flip=True, grayscale_first=True)


class Silent:
    """Show no progress."""

    def start(self, what: str, total: int) -> None:
        """Ignore the start of some work."""

    def advance(self, count: int) -> None:
        """Ignore its progress."""


def torchvision_case(paths: list[Path], on_tensors: bool, workers: int) -> Callable[[], None]:
    """Return a case that loads all files once by torchvision."""
    images = TorchvisionImages(paths, training_transform(CONFIG), on_tensors)
    loader = open_loader(images, BATCH, workers, shuffle=True)

    def run() -> None:
        torch.set_num_threads(1)
        count = sum(len(images_BCHW) for images_BCHW, _ in loader)
        assert count == len(paths)

    return run


def numbers_of_workers() -> list[int]:
    """Return the numbers of workers that are tried for torchvision."""
    cores = os.cpu_count() or 1
    return sorted({max(1, cores // 2), cores, cores + 1})


def our_case(index: ImageIndex, world: World) -> Callable[[], None]:
    """Return a case that loads one epoch by our loader."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)  # the loader's pipeline takes as many as are set when it is built
    bad = BadImages(index, "stop")
    loader = TrainingLoader(index, CONFIG, Order(len(index), BATCH, 0), world, bad)
    epochs = iter(range(10**6))

    def run() -> None:
        torch.set_num_threads(cores)
        count = sum(len(batch.rows_B) for batch in loader.batches(next(epochs)))
        assert count == len(index)

    return run


def assert_equal_crops(index: ImageIndex, world: World) -> float:
    """Assert that our images are torchvision's for the same crops; return the largest mean
    difference.

    The difference is that of resampling, in levels of 255.
    """
    plain = CONFIG.model_copy(update={"jitter": 0.0, "hue": 0.0, "grayscale": 0.0})
    order = Order(len(index), BATCH, 0)
    loader = TrainingLoader(index, plain, order, world, BadImages(index, "stop"))
    batch = next(iter(loader.batches(0)))
    rows = batch.rows_B.numpy()[:16]
    views = training_views(plain, 0, 0, rows, index.heights_N[rows], index.widths_N[rows])
    mean, std = (torch.tensor(v)[:, None, None] for v in (CONFIG.mean, CONFIG.std))
    differences = []
    for at, row in enumerate(rows.tolist()):
        picture = decode_image(read_file(index.store.name(row)), ImageReadMode.RGB)
        box = [*views.start_B2[at].tolist(), *views.shape_B2[at].tolist()]
        theirs = tv.resized_crop(picture, *box, [224, 224], antialias=True)
        theirs = tv.horizontal_flip(theirs) if views.flip_B[at] else theirs
        ours = 255 * (batch.images_BCHW[at] * std + mean)
        differences.append((ours - theirs).abs().mean().item())
    assert max(differences) < 1.0, differences
    return max(differences)


STAGES = ("decode whole", "decode box", "resize", "normalise")


def graph_case(paths: list[Path], stage: str) -> Callable[[], None]:
    """Return a case that runs a bare DALI graph up to one stage, on the same crops in every run."""
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    rows = np.arange(len(paths))
    sizes = np.full(len(paths), 375, np.int32), np.full(len(paths), 500, np.int32)
    views = training_views(CONFIG, 0, 0, rows, *sizes)

    parts = [slice(start, start + BATCH) for start in range(0, len(paths), BATCH)]
    waiting = iter(parts)

    def feed() -> tuple[object, ...]:
        p = next(waiting)
        return encoded[p], views.start_B2[p], views.shape_B2[p]

    pipeline = Pipeline(BATCH, os.cpu_count() or 1, None, prefetch_queue_depth=3)
    with pipeline:
        file, start, shape = fn.external_source(source=feed, num_outputs=3, batch=True)
        if stage == "decode whole":
            pixels = fn.decoders.image(file, output_type=types.RGB)
        else:
            pixels = fn.decoders.image_slice(file, start=start, shape=shape, axes=[0, 1])
        outputs = [pixels]
        if stage in ("resize", "normalise"):
            outputs = [fn.resize(pixels, size=[224, 224], interp_type=types.INTERP_LINEAR)]
        if stage == "normalise":
            mean, std = ([255 * v for v in values] for values in (CONFIG.mean, CONFIG.std))
            normal = fn.crop_mirror_normalize(outputs[0], mean=mean, std=std, dtype=types.FLOAT)
            outputs = [normal, fn.reductions.mean(outputs[0], axes=[0, 1])]
        pipeline.set_outputs(*outputs)
    pipeline.build()

    def run() -> None:
        nonlocal waiting
        waiting = iter(parts)
        with contextlib.suppress(StopIteration):
            while True:
                pipeline.run()
        pipeline.reset()

    return run


def colour_cases(count: int) -> dict[str, Callable[[], object]]:
    """Return cases that change the colours of `count` images by one thread, by model of hue."""
    torch.manual_seed(0)
    rows, sides = np.arange(count), np.full(count, 300, np.int32)
    images_BCHW = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    normal_BCHW = tv.normalize(images_BCHW / 255, CONFIG.mean, CONFIG.std)
    mean_colours_B3 = images_BCHW.float().mean((2, 3))
    hsv = CONFIG.model_copy(update={"hue_model": "hsv"})
    maps, steps = (training_views(config, 0, 0, rows, sides, sides) for config in (CONFIG, hsv))
    cpu = torch.device("cpu")
    by_maps, by_steps = ColourMaps(CONFIG, cpu), HsvJitter(hsv, cpu)

    def alone(change: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(1)
            return change()

        return run

    return {
        "yiq": alone(lambda: by_maps.apply(maps, normal_BCHW, mean_colours_B3)),
        "hsv": alone(lambda: by_steps.apply(steps, images_BCHW)),
    }


def add_colours(benchmark: Benchmark, count: int = 128, repeats: int = 20) -> None:
    """Add the least milliseconds that the colours of `count` images take, by model of hue."""
    for model, seconds in benchmark.repeat(colour_cases(count), repeats).items():
        name = f"least ms for the colours of {count} images by one thread, {model}"
        benchmark.facts[name] = round(1000 * min(seconds), 1)


def hue_differences(paths: list[Path]) -> tuple[float, float]:
    """Return the mean levels between our rotation of YIQ and torchvision's of HSV, over shifts in
    +-0.4.

    For scale the mean levels that torchvision's own shift changes are returned too.
    """
    apart, moved = [], []
    for path in paths:
        picture = tv.resize(decode_image(read_file(str(path)), ImageReadMode.RGB), [64, 64])
        pixels_HW3 = picture.permute(1, 2, 0).double().numpy()
        for shift in np.linspace(-0.4, 0.4, 9):
            ours_HW3 = np.clip(pixels_HW3 @ hue_rotation(np.array([shift]))[0].T, 0, 255)
            theirs_HW3 = tv.adjust_hue(picture, float(shift)).permute(1, 2, 0).numpy()
            apart.append(np.abs(ours_HW3 - theirs_HW3).mean())
            moved.append(np.abs(theirs_HW3 - pixels_HW3).mean())
    return round(float(np.mean(apart)), 1), round(float(np.mean(moved)), 1)


def build_cases(
    benchmark: Benchmark, base: Path, count: int, world: World
) -> dict[str, Callable[[], object]]:
    """Return the cases: ours by storage, torchvision's by number of workers, DALI's graph by
    stage."""
    photos = base / "photos"
    write_photos(photos, count)
    paths, index = sorted(photos.iterdir()), index_folder(photos).index
    benchmark.facts["mean levels from torchvision's"] = round(assert_equal_crops(index, world), 3)

    def pack(name: str, options: PackOptions) -> ImageIndex:
        job = Job(photos, base / name, options, "stop", 2, Silent())
        return prepare(job)["train"].index

    packed = pack("pack", PackOptions(pack=True, resize=256))
    small = unpack(packed, base / "small")
    raw = pack("raw", PackOptions(raw=256))
    config = CONFIG.model_copy(update={"cache_gb": 2.0, "cache_side": 256})
    cached = cache_in_memory(index, config, world, BadImages(index, "stop"))
    stores = {"files": index, "256-px pack": packed, "256-px raw": raw, "256-px cache": cached}
    cases = {f"ours, {name}": our_case(store, world) for name, store in stores.items()}
    if torch.cuda.is_available():
        gpu = replace(world, device=torch.device("cuda", 0))
        cases["ours, files, mixed decode on the GPU"] = our_case(index, gpu)
        cases["ours, 256-px pack, on the GPU"] = our_case(packed, gpu)
        cases["ours, 256-px raw, on the GPU"] = our_case(raw, gpu)
    else:
        benchmark.facts["GPU"] = "no NVIDIA GPU here: mixed decode is not measured"
    for workers in numbers_of_workers():
        for on_tensors, kind in ((False, "PIL"), (True, "tensors")):
            name = f"torchvision {kind}, {workers} workers"
            cases[name] = torchvision_case(paths, on_tensors, workers)
        cases[f"{SMALL_FILES}, {workers} workers"] = torchvision_case(small, True, workers)
    cases |= {f"graph: {stage}": graph_case(paths, stage) for stage in STAGES}
    apart, moved = hue_differences(paths[:32])
    benchmark.facts["hue, mean levels from torchvision's"] = apart
    benchmark.facts["hue, mean levels torchvision's moves"] = moved
    for name, files in (("kB a JPEG", paths), ("kB a packed JPEG", small)):
        size = sum(path.stat().st_size for path in files) / count
        benchmark.facts[name] = round(size / 1000, 1)
    return cases


def unpack(packed: ImageIndex, folder: Path) -> list[Path]:
    """Write the files of a pack on their own and return their paths; torchvision cannot read
    packs."""
    assert isinstance(packed.store, ArchiveStore)
    folder.mkdir()
    paths = [folder / f"{row:05}.jpg" for row in range(len(packed))]
    for row, path in enumerate(paths):
        path.write_bytes(packed.store.read(row))
    return paths


def add_ratios(benchmark: Benchmark, count: int) -> None:
    """Add the ratios to torchvision's best, and the floors."""
    names = [result.name for result in benchmark.results]
    peers = [name for name in names if name.startswith("torchvision")]
    best = min((n for n in peers if SMALL_FILES not in n), key=benchmark.seconds_per_unit)
    best_small = min((n for n in peers if SMALL_FILES in n), key=benchmark.seconds_per_unit)
    benchmark.facts["best of torchvision"] = best
    why = "its build stops at the missing package opencv4"
    benchmark.facts["FFCV"] = f"does not install by pip: {why}"
    for name, baseline, ours in (
        ("torchvision", best, "ours, files"),
        ("packed", best, "ours, 256-px pack"),
        ("packed_same_files", best_small, "ours, 256-px pack"),
        ("raw", best, "ours, 256-px raw"),
        ("cache", best, "ours, 256-px cache"),
        ("pack_over_files", "ours, files", "ours, 256-px pack"),
        ("decode_only_over_ours", "graph: decode box", "ours, files"),
    ):
        benchmark.ratio(name, baseline, ours)
    images = benchmark.rates["decode_images_s"]
    benchmark.floor("decode", "ours, files", count / images, f"{count} images decoded whole")
    megabytes = count * benchmark.facts["kB a packed JPEG"] / 1000
    least = megabytes / benchmark.rates["decode_mb_s"]
    benchmark.floor("packed", "ours, 256-px pack", least, f"{megabytes:.1f} MB decoded whole")


def main() -> None:
    """Run the benchmark."""
    arguments = parse_arguments(__doc__ or "")
    count = 128 if arguments.smoke else 512
    benchmark = Benchmark("loader")
    with tempfile.TemporaryDirectory() as base, open_world("cpu", os.cpu_count()) as world:
        cases = build_cases(benchmark, Path(base), count, world)
        _ = benchmark.rates_before
        peaks = {name: extra_family_peak_mb(case) for name, case in cases.items()}
        benchmark.measure(cases, arguments.repeats, dict.fromkeys(cases, count), "images")
    for name, peak in peaks.items():
        benchmark.result(name).peak_mb = peak
    benchmark.facts["peak MB"] = "what a first epoch adds, workers included"
    add_ratios(benchmark, count)
    add_colours(benchmark)
    benchmark.finish(arguments.json)


if __name__ == "__main__":
    main()
