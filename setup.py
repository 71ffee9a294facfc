"""Map the root folders to sub-packages of `forethought` (everything else is in pyproject.toml)."""

from setuptools import find_namespace_packages, setup

ROOMS = ("agent", "worldmodel", "envs", "planners", "configs")

packages = ["forethought"]
for room in ROOMS:
    packages += [
        f"forethought.{name}" for name in find_namespace_packages(include=[room, f"{room}.*"])
    ]

setup(
    packages=packages,
    package_dir={"forethought": "forethought", **{f"forethought.{room}": room for room in ROOMS}},
)
