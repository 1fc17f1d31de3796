"""Every module lies in a package, so that a wheel holds it."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages


def test_every_module_is_in_a_package_that_a_wheel_holds() -> None:
    held = set(find_packages(include=["and_dist*", "launcher*"]))
    modules = [path for name in ("and_dist", "launcher") for path in Path(name).rglob("*.py")]
    assert len(modules) > 150
    assert {".".join(path.parent.parts) for path in modules} == held
