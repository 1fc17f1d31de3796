"""Runs as they are checked and described before they are submitted."""

from __future__ import annotations

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Size
from launcher.submit import describe, prepare

SIZE = Size(workers=1, time="1h")
DEBUG = ["configs/debug.yaml"]


def test_a_network_that_cannot_be_counted_here_goes_without_a_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A login node may have no torch, and the job has."""
    monkeypatch.setattr("and_dist.planning.costs.find_spec", lambda _: None)
    given = ["encoder.name=torchvision/resnet34", "encoder.feature_dim=77"]
    said = "\n".join(describe(prepare(DEBUG, given, Profile(), SIZE)))
    assert "200 images" not in said
    assert "no prediction: encoder.name=torchvision/resnet34: its costs are not listed" in said


def test_a_network_of_ours_is_predicted_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("and_dist.planning.costs.find_spec", lambda _: None)
    said = "\n".join(describe(prepare(DEBUG, [], Profile(), SIZE)))
    assert "200 images, tiny" in said
    assert "no prediction" not in said


def test_an_encoder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder.name='smal' is not one of: .* mean small\?"):
        prepare(DEBUG, ["encoder.name=smal"], Profile(), SIZE)
