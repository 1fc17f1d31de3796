"""Attack configs: files, overrides, sweeps, profiles and settings that may not fit each other.

Most trials call the readers themselves, each in a fork of a process that has imported them. A trial
holds if the config is refused by an error message, or accepted with the values as they were given
and fit for all that a run does with them.
"""

from __future__ import annotations

from tests.attack.campaign import Kind
from tests.attack.configs.draw import draw
from tests.attack.configs.known import KNOWN

KIND = Kind("configs", weight=2200, known=KNOWN, draw=draw)
