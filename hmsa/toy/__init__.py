# SPDX-License-Identifier: Apache-2.0
"""A drawn street world in the tree of Cityscapes: only tools and tests draw it."""
