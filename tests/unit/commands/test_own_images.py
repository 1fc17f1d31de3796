"""Which config `and-dist train` takes, where images are named and where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.commands.own_images import NOTHING_TO_TRAIN, choose_config, split_source
from and_dist.runs.folder import write_config
from and_dist.utils.progress import NoReport
from tests.pictures import save_pictures


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        save_pictures(tmp_path / "photos" / label, [(40, 30)] * 4)


def test_the_first_argument_may_name_images() -> None:
    assert split_source(["photos/", "seed=1"]) == ("photos/", ["seed=1"])
    assert split_source(["seed=1"]) == (None, ["seed=1"])
    assert split_source([]) == (None, [])
    assert split_source(["shapes/train"]) == ("shapes/train", [])
    for wrong, said in ((["nowhere"], "no such folder"), (["seed=1", "photos"], "first argument")):
        with pytest.raises(ValueError, match=said):
            split_source(wrong)


def test_images_alone_get_a_proposal_by_either_name() -> None:
    named = choose_config([], "photos/", ["seed=1"], NoReport())
    assert named.proposal is not None
    assert (named.config.data.train, named.config.seed) == ("photos", 1)
    assert choose_config([], None, ["seed=1", "data.train=photos"], NoReport()).config == (
        named.config
    )


def test_a_config_that_is_named_is_no_proposal() -> None:
    chosen = choose_config([Path("demo")], "photos", [], NoReport())
    assert (chosen.proposal, chosen.config.data.train) == (None, "photos")
    assert (chosen.config.data.test, chosen.config.curriculum.epochs) == (None, 20)


def test_a_run_goes_on_with_its_own_config_whatever_would_be_proposed_now() -> None:
    begun = choose_config([], "photos", [], NoReport()).config
    write_config(begun, begun.folder)
    save_pictures(Path("photos/c"), [(400, 300)] * 40)
    again = choose_config([], "photos", [], NoReport())
    assert (again.proposal, again.config) == (None, begun)
    assert choose_config([], "photos", ["name=new"], NoReport()).config.data != begun.data


def test_test_images_beside_the_training_images_are_used() -> None:
    for name in ("train", "val"):
        save_pictures(Path("split") / name / "a", [(40, 30)] * 4)
    data = choose_config([], "split", [], NoReport()).config.data
    assert (data.train, data.test) == ("split/train", "split/val")


def test_nothing_is_trained_by_surprise() -> None:
    for overrides in ([], ["encoder.name=tiny", "name=x"]):
        with pytest.raises(ValueError, match="say what to train on") as refused:
            choose_config([], None, overrides, NoReport())
        assert str(refused.value) == NOTHING_TO_TRAIN
    begun = choose_config([], "photos", ["name=x"], NoReport()).config
    write_config(begun, begun.folder)
    assert choose_config([], None, ["name=x"], NoReport()).config == begun


def test_two_names_for_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match="give the one or the other"):
        choose_config([], "photos", ["data.train=photos"], NoReport())


@pytest.mark.parametrize(
    "wrong",
    [
        "curriculum.rounds=-1",
        "curriculum.rounds=many",
        "curriculum.epochs=[3]",
        "data.image_size={a: 1}",
        "data.limit=-4",
        "run.root=[runs]",
        "run.device=7",
        "name=../up",
        "method=none",
    ],
)
def test_a_wrong_value_is_refused_before_a_proposal_makes_use_of_it(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        choose_config([], "photos", [wrong], NoReport())
