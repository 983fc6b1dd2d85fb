# SPDX-License-Identifier: Apache-2.0
"""Annotations as drawing programs write them, and the masks made of them: a number of a class in every pixel."""
