# SPDX-License-Identifier: Apache-2.0
"""Exports: writing them, and running them."""
