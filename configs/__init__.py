"""Packaged experiments: one YAML file each, holding arguments of `forethought train`."""

__all__: list[str] = []
