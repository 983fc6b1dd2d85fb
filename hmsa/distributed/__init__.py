# SPDX-License-Identifier: Apache-2.0
"""Ranks: what processes do together, and how one that fails ends all."""

from hmsa.former import names_of

__getattr__ = names_of(__name__)
