"""Hold decoded training images in memory, one copy a node, shared by its ranks (`data.cache_gb`).

The ranks of a node each decode a part of the images into one block of shared memory. The block has
no name, and the other ranks open it through the one that made it. So the memory is freed when the
processes end, however they end.
"""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from and_dist.config.schema import DataConfig
from and_dist.data.image_headers import RGB_BYTES, Unreadable, check_pixels, most_bytes
from and_dist.data.index import I32, ImageIndex
from and_dist.data.stores import U8, Box, FileStore, MemoryStore, Store
from and_dist.data.transcode import PackOptions, target_size, transform
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_objects, raise_on_all_ranks
from and_dist.distributed.world import World
from and_dist.utils.owned_files import memory_file
from and_dist.utils.room import Room

SHARED_MEMORY = Path("/dev/shm")
LARGEST_SIDE = 2**31
"""A side that no image exceeds: images are cached at their own size."""


def cached_sizes(index: ImageIndex, config: DataConfig) -> tuple[I32, I32]:
    """Return (heights [N], widths [N]) of the images as the cache holds them.

    Images that are stored as pixels keep their size; others are shrunk to `data.cache_side`.
    """
    if index.store.kind == "pixels":
        return index.heights_N, index.widths_N
    sizes = [
        target_size(height, width, config.cache_side)
        for height, width in zip(index.heights_N.tolist(), index.widths_N.tolist(), strict=True)
    ]
    heights_N, widths_N = np.array(sizes, np.int32).reshape(-1, 2).T.copy()
    return heights_N, widths_N


def check_cache(index: ImageIndex, config: DataConfig) -> None:
    """Raise ValueError if the decoded images need more memory than `data.cache_gb`.

    Without a cache, and for images that are in memory already, nothing is checked.
    """
    if not config.cache_gb or isinstance(index.store, MemoryStore):
        return
    heights_N, widths_N = cached_sizes(index, config)
    needed = 3 * int((heights_N.astype(np.int64) * widths_N).sum()) / 1e9
    if needed > config.cache_gb:
        raise ValueError(
            f"data.cache_gb={config.cache_gb:g} is too little for {len(index):,} decoded images, "
            f"which need {needed:.2f} GB; allow that, or make them smaller by data.cache_side"
        )


def cache_in_memory(
    index: ImageIndex, config: DataConfig, world: World, bad: BadImages
) -> ImageIndex:
    """Return an index of the decoded images in memory that the ranks of this node share.

    All ranks call this together. An image that cannot be decoded is added to `bad`, which raises
    RuntimeError if its policy is to stop. If no cache is asked for, or the images are in memory
    already, `index` itself is returned.
    """
    if not config.cache_gb or isinstance(index.store, MemoryStore):
        return index
    heights_N, widths_N = cached_sizes(index, config)
    ends_N = np.cumsum(3 * heights_N.astype(np.int64) * widths_N)
    block = _shared_block(int(ends_N[-1]), world)
    offset_N = np.concatenate([[0], ends_N[:-1]])
    store = MemoryStore(block, offset_N, heights_N, widths_N, "the cache")
    with raise_on_all_ranks(world, "filling data.cache"):
        rows = range(world.local_rank, len(index), world.local_size)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            room = Room(config.decode_mb * 1e6)

            def fill(row: int) -> dict[int, str]:
                sides = int(index.heights_N[row]), int(index.widths_N[row])
                with room.hold(RGB_BYTES * sides[0] * sides[1]):
                    return _fill(index.store, store, row, sides, config)

            for found in threads.map(fill, rows):
                bad.add(found)
    return ImageIndex(store, heights_N, widths_N, index.content_hash)


def _shared_block(size: int, world: World) -> U8:
    """Return one block of shared memory, mapped by every rank of this node."""
    path = None
    with ExitStack() as made:
        with raise_on_all_ranks(world, "making room for data.cache"):
            if world.local_rank == 0:
                path = made.enter_context(memory_file(SHARED_MEMORY, size))
        places = gather_objects(world, [platform.node(), str(path or "")])
        # The first rank of a node must keep the file open until the others have opened it.
        with raise_on_all_ranks(world, "opening data.cache"):
            mine = next(place for node, place in places if node == platform.node() and place)
            block = _map(Path(mine), size)
    return block


def _map(place: Path, size: int) -> U8:
    """Map the block that a rank of this node has made."""
    try:
        block = np.memmap(place, np.uint8, "r+")
    except OSError as error:
        raise RuntimeError(
            f"the ranks of {platform.node()} do not see each other's files ({place}: "
            f"{error.strerror}); run them in one container, or set data.cache_gb=null"
        ) from None
    if len(block) != size:
        raise RuntimeError(f"{place} has {len(block):,} bytes, and the cache has {size:,}")
    return block


def _fill(
    source: Store, cache: MemoryStore, row: int, sides: tuple[int, int], config: DataConfig
) -> dict[int, str]:
    """Decode one image, which had these sides when it was listed, into its place in the cache.

    Return {} on success, and {row: error message} if the image cannot be decoded or has another
    size than when it was listed.
    """
    place = cache.pixels(row)
    height, width = place.shape[:2]
    try:
        if source.kind == "pixels":
            assert not isinstance(source, FileStore)
            place[:] = source.fetch(row, Box(0, 0, height, width))
            return {}
        assert not isinstance(source, MemoryStore)
        side = config.cache_side or LARGEST_SIDE
        check_pixels(*sides, config.decode_mb)
        content, *found, _ = transform(source.read(row, most_bytes(*sides)), PackOptions(raw=side))
        if found != [height, width]:
            return {row: f"it is {found[0]} x {found[1]} pixels now, not {height} x {width}"}
        place[:] = np.frombuffer(content, np.uint8).reshape(place.shape)
    except Unreadable as error:
        return {row: str(error)}
    except Exception as error:  # a decoder may raise anything at a broken file
        return {row: f"its data is damaged or cut short: {error}"}
    return {}
