from __future__ import annotations

from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile, load_profile


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["example", "laptop"])
def test_the_profiles_that_come_along_are_right(name: str) -> None:
    assert load_profile(Path(f"slurm/{name}.yaml")) != Profile()


def test_an_empty_profile_leaves_all_to_slurm(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, "")) == Profile()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitions: gpu", "unknown key 'partitions'; the top level takes: partition, account"),
        ("memory_gb: lots", "memory_gb = 'lots' will not do"),
        ("gpus_per_node: -1", "gpus_per_node = -1 will not do"),
        ("signal_lead: 5", "signal_lead = 5 will not do"),
        ("environment: {A-B: c}", "environment.A-B"),
        ('setup: ["a\\nb"]', "setup.0"),
        ("interface: 3", "interface = 3 will not do"),
        ('python: "python \'x"', "is no command: No closing quotation"),
        ("- gpu", "is not a mapping"),
        ("partition: [", "is not plain YAML"),
    ],
)
def test_what_is_wrong_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as refused:
        load_profile(path)
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_profile_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read config .*nowhere.yaml"):
        load_profile(tmp_path / "nowhere.yaml")


def test_a_bare_name_is_a_shipped_profile() -> None:
    assert load_profile(Path("example")) == load_profile(Path("slurm/example.yaml"))
    with pytest.raises(ValueError, match=r"no cluster profile nowhere: .* example and laptop"):
        load_profile(Path("nowhere"))
