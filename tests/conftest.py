# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: the same preparation the scripts make, before Paddle is loaded."""

from hmsa.environment import prepare

prepare()
