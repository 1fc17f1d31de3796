"""Recognise the names of secrets, and show arguments without their values."""

from __future__ import annotations

import pytest

from and_dist.config.secret_values import hide_secrets, is_secret


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "PGPASSWORD",
        "DB_PASSWD",
        "NGC_APIKEY",
        "SSH_AUTH",
        "GITHUB_PAT",
        "credentials",
        "--pass",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "KEYBOARD", "optim.lr", "data.path", "PATH", "AUTHOR"],
)
def test_other_names(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["train", "optim.lr=0.1", "name=a"], ["train", "optim.lr=0.1", "name=a"]),
        (["wandb.api_key=x=y", "--token", "z", "b"], ["wandb.api_key=***", "--token", "***", "b"]),
        (["--password=z", "--key"], ["--password=***", "--key"]),
        (["--url", "https://me:pw@host/x@y"], ["--url", "https://***@host/x@y"]),
        (["token", "stays"], ["token", "stays"]),
        (["--token", "--secret", "seen"], ["--token", "***", "seen"]),
    ],
)
def test_values_are_hidden(given: list[str], shown: list[str]) -> None:
    assert hide_secrets(given) == shown
