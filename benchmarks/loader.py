"""python -m benchmarks.loader [--smoke] [--json FILE]

Training images per second from JPEG files of 500 x 375 to 224 x 224, antialiased, with the whole
ImageNet augmentation: DALI fed by our own parameters, against torchvision v2 in a DataLoader at
its best number of workers, on the same files. And what packs, raw pixels and the cache add, which
operator takes what share, and how far it is from decoding alone. Where there is an NVIDIA GPU,
the same with decoding and all the rest on it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from and_dist.config import DataConfig
from and_dist.data.augment import hue_rotation, training_views
from and_dist.data.bad_images import BadImages
from and_dist.data.cache import cache_in_memory
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.pack import PackOptions
from and_dist.data.prepare import Job, prepare
from and_dist.world import World, open_world
from benchmarks.harness import Benchmark, parse_arguments

BATCH = 64
CONFIG = DataConfig(image_size=224, flip=True, grayscale_first=True)


class Silent:
    def start(self, what: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...


def write_photos(folder: Path, count: int) -> None:
    """Pictures with the detail of photographs: about 100 kB each as JPEG, like ImageNet's."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        fine = random.normal(0, 14, (188, 250, 3)).astype(np.float32).repeat(2, 0).repeat(2, 1)
        pixels = np.clip(smooth + fine[:375, :500], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


# The peer: torchvision as its documentation has one use it.


class TorchvisionImages(Dataset[torch.Tensor]):
    """v2 transforms on PIL images, or on uint8 tensors decoded by torchvision's own libjpeg."""

    def __init__(self, paths: list[Path], on_tensors: bool) -> None:
        self.paths = paths
        self.on_tensors = on_tensors
        self.augment = v2.Compose([
            v2.RandomResizedCrop(224, scale=(0.2, 1.0), antialias=True),
            v2.RandomGrayscale(0.2),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CONFIG.mean, CONFIG.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        if self.on_tensors:
            image = decode_image(read_file(str(self.paths[row])), ImageReadMode.RGB)
        else:
            image = Image.open(self.paths[row]).convert("RGB")
        augmented: torch.Tensor = self.augment(image)
        return augmented


def torchvision_case(paths: list[Path], on_tensors: bool, workers: int) -> Callable[[], None]:
    loader = DataLoader(
        TorchvisionImages(paths, on_tensors), BATCH, shuffle=True, num_workers=workers,
        persistent_workers=True, prefetch_factor=2,
    )  # fmt: skip

    def run() -> None:
        torch.set_num_threads(1)
        count = sum(len(images) for images in loader)
        assert count == len(paths)

    return run


# Ours.


def our_case(index: ImageIndex, world: World) -> Callable[[], None]:
    torch.set_num_threads(os.cpu_count() or 1)
    bad = BadImages(index, "stop")
    loader = TrainingLoader(index, CONFIG, Order(len(index), BATCH, 0), world, bad)
    epochs = iter(range(10**6))

    def run() -> None:
        count = sum(len(batch.rows_B) for batch in loader.batches(next(epochs)))
        assert count == len(index)
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def assert_equal_crops(index: ImageIndex, world: World) -> float:
    """Our images are torchvision's for the same crops, but for resampling; the mean difference."""
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


# Where the time goes.


STAGES = ("decode whole", "decode box", "resize", "normalise")


def graph_case(paths: list[Path], stage: str) -> Callable[[], None]:
    """A bare DALI graph up to a stage, fed the same crops over and over."""
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


# What is known to differ.


def hue_differences(paths: list[Path]) -> tuple[float, float]:
    """Mean levels between our rotation of YIQ and torchvision's of HSV over shifts in +-0.4,
    and for scale, what torchvision's own shift moves."""
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


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    count = 128 if arguments.smoke else 512
    repeats = 2 if arguments.smoke else arguments.repeats
    benchmark = Benchmark("loader")
    with tempfile.TemporaryDirectory() as base, open_world("cpu") as world:
        photos = Path(base, "photos")
        write_photos(photos, count)
        paths = sorted(photos.iterdir())
        index = index_folder(photos).index
        benchmark.facts["mean difference from torchvision, levels"] = round(
            assert_equal_crops(index, world), 3
        )

        def pack(name: str, options: PackOptions) -> ImageIndex:
            job = Job(photos, Path(base, name), options, "stop", 2, Silent())
            return prepare(job)["train"].index

        small = Path(base, "small")
        small.mkdir()
        packed = pack("pack", PackOptions(pack=True, resize=256))
        for row in range(count):
            (small / f"{row:05}.jpg").write_bytes(packed.store.read(row))  # type: ignore[union-attr]
        raw = pack("raw", PackOptions(raw=256))
        cached = CONFIG.model_copy(update={"cache_gb": 2.0, "cache_side": 256})
        cases = {
            "ours, files": our_case(index, world),
            "ours, 256-px pack": our_case(packed, world),
            "ours, 256-px raw": our_case(raw, world),
            "ours, 256-px cache": our_case(
                cache_in_memory(index, cached, world, BadImages(index, "stop")), world
            ),
        }
        if torch.cuda.is_available():
            gpu = replace(world, device=torch.device("cuda", 0))
            cases["ours, files, mixed decode on the GPU"] = our_case(index, gpu)
            cases["ours, 256-px pack, on the GPU"] = our_case(packed, gpu)
            cases["ours, 256-px raw, on the GPU"] = our_case(raw, gpu)
        else:
            benchmark.facts["GPU"] = "no NVIDIA GPU here: mixed decode is not measured"
        for on_tensors in (False, True):
            kind = "tensors" if on_tensors else "PIL"
            for workers in (1, 2, 3):
                name = f"torchvision {kind}, {workers} workers"
                cases[name] = torchvision_case(paths, on_tensors, workers)
        cases["torchvision tensors, 256-px files"] = torchvision_case(
            sorted(small.iterdir()), True, 2
        )
        for stage in STAGES:
            cases[f"graph: {stage}"] = graph_case(paths, stage)
        benchmark.measure(cases, repeats, dict.fromkeys(cases, count), "images")
        apart, moved = hue_differences(paths[:32])
        benchmark.facts["hue, mean levels from torchvision's"] = apart
        benchmark.facts["hue, mean levels torchvision's moves"] = moved
        size = sum(path.stat().st_size for path in paths) / count
        benchmark.facts["kB a JPEG"] = round(size / 1000, 1)
    names = [result.name for result in benchmark.results]
    peers = [name for name in names if name.startswith("torchvision") and "256" not in name]
    best = min(peers, key=benchmark.seconds_per_unit)
    benchmark.facts["best of torchvision"] = best
    why = "its build stops at the missing package opencv4"
    benchmark.facts["FFCV"] = f"does not install by pip: {why}"

    def ratio(theirs: str, ours: str) -> float:
        return round(benchmark.seconds_per_unit(theirs) / benchmark.seconds_per_unit(ours), 3)

    benchmark.ratios = {
        "torchvision": ratio(best, "ours, files"),
        "packed": ratio(best, "ours, 256-px pack"),
        "packed_same_files": ratio("torchvision tensors, 256-px files", "ours, 256-px pack"),
        "raw": ratio(best, "ours, 256-px raw"),
        "cache": ratio(best, "ours, 256-px cache"),
        "pack_over_files": ratio("ours, files", "ours, 256-px pack"),
        "decode_only_over_ours": ratio("graph: decode box", "ours, files"),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    benchmark.facts["peak memory of the process, MB"] = round(peak)
    benchmark.finish(arguments.json)


if __name__ == "__main__":
    main()
