"""Define `and-dist init`. No torch."""

from __future__ import annotations

from typing import Annotated

import typer

from and_dist.commands.options import Overrides


def init(
    images: Annotated[str, typer.Argument(help="Folder of images, or a prepared set.")],
    overrides: Overrides = None,
) -> None:
    """Propose a config for your own images: and-dist init photos/ > mine.yaml."""
    from and_dist.commands.own_images import propose_config, split_source
    from and_dist.config.load import parse_overrides
    from and_dist.config.validation import flatten
    from and_dist.planning.proposal import as_yaml
    from and_dist.utils.progress import NoReport

    source, given = split_source([images, *(overrides or [])])
    if source is None:
        raise ValueError(f"{images} names no images: and-dist init FOLDER [key=value ...]")
    chosen = propose_config(source, flatten(parse_overrides(given)), given, NoReport())
    assert chosen.proposal is not None
    assert chosen.found is not None
    typer.echo(as_yaml(chosen.proposal, chosen.found), nl=False)
