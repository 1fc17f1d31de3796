"""A wheel holds every module, the shipped configs and the example profiles."""

from __future__ import annotations

import tomllib
from pathlib import Path

SETTINGS = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_module_is_in_a_package_that_a_wheel_holds() -> None:
    elsewhere = set(SETTINGS["package-dir"])
    modules = [path for name in ("and_dist", "launcher") for path in Path(name).rglob("*.py")]
    assert len(modules) > 150
    folders = {".".join(path.parent.parts) for path in modules}
    assert folders == set(SETTINGS["packages"]) - elsewhere


def test_packages_that_lie_elsewhere_are_there() -> None:
    assert SETTINGS["package-dir"].keys() <= set(SETTINGS["packages"])
    for package, folder in SETTINGS["package-dir"].items():
        patterns = SETTINGS["package-data"][package]
        assert all(any(Path(folder).glob(pattern)) for pattern in patterns)
