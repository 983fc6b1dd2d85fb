# SPDX-License-Identifier: Apache-2.0
"""Data sets, their label tables and the loader."""
