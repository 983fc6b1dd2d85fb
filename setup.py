# SPDX-License-Identifier: Apache-2.0
"""Which packages there are, as the recipes of configs/ become hmsa.recipes; all else is declared in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hmsa*"]), "hmsa.recipes"],
    package_dir={"hmsa.recipes": "configs"},
    package_data={
        "hmsa.recipes": ["*.yml", "_base_/*.yml", "schema.json"],
        "hmsa.report": ["templates/*"],
    },
)
