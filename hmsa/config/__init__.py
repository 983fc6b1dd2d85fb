# SPDX-License-Identifier: Apache-2.0
"""Recipes: YAML files read, laid over one another, and checked."""
