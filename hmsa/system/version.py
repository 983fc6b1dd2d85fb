# SPDX-License-Identifier: Apache-2.0
"""The version of this project: the one place where it stands."""

VERSION = "0.1.0"
