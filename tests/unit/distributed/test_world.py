from __future__ import annotations

import os

from and_dist.distributed.launch_env import LaunchEnv
from and_dist.distributed.world import share_of_cores


def test_threads_are_a_share_of_the_cores_that_were_given() -> None:
    given = os.sched_getaffinity(0)
    assert share_of_cores(LaunchEnv()) == len(given)
    assert share_of_cores(LaunchEnv(local_size=2 * len(given))) == 1
    os.sched_setaffinity(0, {min(given)})
    try:
        assert share_of_cores(LaunchEnv()) == 1
    finally:
        os.sched_setaffinity(0, given)
