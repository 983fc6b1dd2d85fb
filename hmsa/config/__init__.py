# SPDX-License-Identifier: Apache-2.0
"""Recipes: YAML files read, laid over one another, and checked."""

from hmsa.former import names_of

__getattr__ = names_of(__name__)
