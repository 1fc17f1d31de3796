"""Track images that cannot be read while a run goes on, and apply the policy of `data.bad_images`.

`stop` ends the run with an error that names the image. `skip` logs it once, counts it, and puts
another image of the batch in its place with a row of -1, which keeps it out of loss, mean and bank.
If more than 1 % of all images are bad, the run ends under either policy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from and_dist.data.index import ImageIndex
from and_dist.data.order import LocalRows
from and_dist.distributed.collectives import gather_objects
from and_dist.distributed.world import World
from and_dist.utils.owned_files import IsOurs, NotOursError, write_file

LARGEST_SHARE = 0.01
"""The share of bad images above which a run ends."""


class BadImageError(RuntimeError):
    """Reports images that cannot be read and without which nothing may go on.

    Its message says all: which ones, why, and what the user can do about it.
    """


class AllBad(BadImageError):
    """Reports that no good image is left to stand in for a bad one."""


def is_list_of(index: ImageIndex) -> IsOurs:
    """Return a test for lists of bad images, in which every line begins with an image's name."""

    def is_ours(path: Path) -> bool:
        lines = path.read_text(errors="surrogateescape").splitlines()
        return all(line.startswith(index.store.beginnings) for line in lines)

    return is_ours


class BadImages:
    """Hold the bad rows of one index that this rank knows; share() tells them to all ranks."""

    def __init__(
        self,
        index: ImageIndex,
        policy: Literal["stop", "skip"],
        say: Callable[[str], None] = print,
        largest_share: float = LARGEST_SHARE,
        left_out: tuple[str, ...] = (),
    ) -> None:
        """Start without bad images; `left_out` are lines of images outside the index."""
        self.reasons: dict[int, str] = {}
        self._unshared: dict[int, str] = {}
        self._index = index
        self._policy = policy
        self._say = say
        self._largest_share = largest_share
        self._left_out = left_out
        self._lock = threading.Lock()

    def add(self, found: dict[int, str]) -> None:
        """Add bad images, {row: reason}, and log each new one.

        Raise BadImageError under the policy `stop`, or if there are too many. Any thread may call
        this.
        """
        with self._lock:
            new = {row: why for row, why in found.items() if row not in self.reasons}
            self.reasons |= new
            self._unshared |= new
        for row, why in new.items():
            if self._policy == "stop":
                raise BadImageError(
                    f"{self._index.store.name(row)}: {why} "
                    "(data.bad_images=skip trains on without such images)"
                )
            self._say(f"left out {self._index.store.name(row)}: {why}")
        self._check_share()

    def stand_in(self, local: LocalRows) -> LocalRows:
        """Return the rows with each bad image replaced by a good one of the batch whose row is -1.

        Raise AllBad if the index has no good image.
        """
        if not self.reasons:
            return local
        is_bad_B = np.isin(local.images_B, list(self.reasons))
        if not is_bad_B.any():
            return local
        good_B = local.images_B[~is_bad_B]
        good_row = good_B[0] if len(good_B) else self._any_good_row()
        return LocalRows(
            np.where(is_bad_B, good_row, local.images_B), np.where(is_bad_B, -1, local.rows_B)
        )

    def share(self, world: World, file: Path) -> None:
        """Gather the bad images of all ranks; the coordinator writes them to `file`.

        All ranks call this together. Raise BadImageError if there are too many.
        """
        with self._lock:
            mine, self._unshared = self._unshared, {}
        for found in gather_objects(world, [*mine.items()]):
            self.reasons |= dict(found)
        self._check_share()
        name = self._index.store.name
        lines = [*self._left_out, *(f"{name(r)}: {self.reasons[r]}" for r in sorted(self.reasons))]
        if world.is_coordinator and lines:
            try:
                write_file(file, "".join(f"{line}\n" for line in lines), is_list_of(self._index))
            except (NotOursError, OSError) as error:
                # The list is not worth ending the run, and rank 0 alone would end here.
                self._say(f"bad images are not listed: {error}")

    def _check_share(self) -> None:
        """Raise BadImageError if more than one image is bad, and more than the allowed share."""
        if len(self.reasons) > max(1, self._largest_share * len(self._index)):
            raise BadImageError(
                f"{len(self.reasons)} of {len(self._index)} images cannot be read, more than "
                f"{self._largest_share:.0%}; the first: {self._index.store.name(min(self.reasons))}"
            )

    def _any_good_row(self) -> int:
        """Return the first row that is not bad; raise AllBad if there is none."""
        for row in range(len(self._index)):
            if row not in self.reasons:
                return row
        raise AllBad(f"none of {len(self._index)} images can be read")
