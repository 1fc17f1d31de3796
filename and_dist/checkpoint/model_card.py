"""Write the card of an exported encoder: what it is, how to feed it and how well it does."""

from __future__ import annotations

import yaml

from and_dist.checkpoint.card_scripts import Format, script_of
from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.config.schema import DataConfig, EncoderConfig
from and_dist.models.encoders import Encoder
from and_dist.runs.folder import read_starts, say_if_cut
from and_dist.runs.metrics_file import read_metrics
from and_dist.utils.formatting import percent

CARD = "README.md"


def describe_model(
    opened: OpenedCheckpoint,
    encoder: Encoder,
    kind: Format,
    has_head: bool,
    file_name: str,
    sha256: str,
) -> str:
    """Return the card: what it is, how to feed it, what it was trained on and how well it does."""
    config, progress, images = opened.config, opened.state["progress"], opened.state["images"]
    epochs = config.epochs_of(progress["round_index"])
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).strip()
    paragraphs = [
        f"# {config.name}: {config.encoder.name}",
        f"Trained with and-dist by {_describe_method(config.method)}; checkpoint "
        f"{opened.checkpoint.name}, after {progress['epochs']} of {epochs} epochs of round "
        f"{progress['round_index']} of {config.last_round}.",
        f"- file: `{file_name}`, {_describe_output(config.encoder, has_head)}\n"
        f"- sha256: `{sha256}`\n"
        f"- input: {_describe_input(config.data)}\n"
        f"- trained on: {config.data.train}, {images['rows']:,} images, "
        f"manifest hash `{images['content_hash']}`",
        script_of(kind, config, encoder, has_head),
        _table_of_rounds(opened),
        f"kNN with {config.evaluation.votes_among(images['rows'])}. Consistency and kNN come from "
        "labels that training has not seen; - where there are none.",
        f"## Config\n\n```yaml\n{settings}\n```",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe_method(method: str) -> str:
    """Describe how the encoder was trained."""
    if method == "and":
        return "Anchor Neighbourhood Discovery, without labels"
    return f"method={method}, " + ("with labels" if method == "supervised" else "without labels")


def _describe_output(encoder: EncoderConfig, has_head: bool) -> str:
    """Describe what the exported encoder gives for an image."""
    if has_head:
        return f"with its head: features of unit norm, {encoder.feature_dim} long"
    return "without its head: what the trunk gives"


def _describe_input(data: DataConfig) -> str:
    """Describe the images that the exported encoder takes."""
    cut = f"shorter side to {data.test_resize}, centre crop" if data.test_resize else "whole image"
    return (
        f"RGB in 0..1, {data.image_size} x {data.image_size} ({cut}), minus {list(data.mean)}, "
        f"divided by {list(data.std)}"
    )


def _table_of_rounds(opened: OpenedCheckpoint) -> str:
    """Return a table of the rounds that the checkpoint has finished."""
    lines = ["| round | anchors | consistency % | bank-kNN % | kNN % |", "|---|---|---|---|---|"]
    progress = opened.state["progress"]
    is_whole = progress["epochs"] == opened.config.epochs_of(progress["round_index"])
    say_if_cut(opened.run, read_starts(opened.run))
    for r in read_metrics(opened.run / "metrics.jsonl", "round"):
        if r["round"] < progress["round_index"] or (
            r["round"] == progress["round_index"] and is_whole
        ):
            shares = [percent(r[key]) for key in ("consistency", "knn_bank", "knn")]
            lines.append(f"| {r['round']} | {r['anchors']:,} | {' | '.join(shares)} |")
    return "\n".join(lines)
