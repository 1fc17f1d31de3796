"""Recognise passwords and keys by their names, and leave them out of what is written and shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"
SECRET = re.compile(
    r"token(?!iz)|secret|passw|credential|api_?key|(?<![a-z0-9])(?:key|pass|pwd|auth|pat)(?![a-z0-9])",
    re.IGNORECASE,
)
USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def is_secret(name: str) -> bool:
    """Return whether a name, such as WANDB_API_KEY or --token, is that of a secret value."""
    return SECRET.search(name) is not None


def hide_secrets(arguments: Iterable[str]) -> list[str]:
    """Return the arguments of a command with *** for secret values.

    They are recognised in `name=value`, in `--name value`, and in URLs with a user's name.
    """
    shown, is_value = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if is_value:
            argument = HIDDEN
        elif equals and is_secret(name):
            argument = f"{name}={HIDDEN}"
        is_value = not is_value and not equals and name.startswith("--") and is_secret(name)
        shown.append(USER_OF_URL.sub(HIDDEN, argument))
    return shown
