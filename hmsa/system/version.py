# SPDX-License-Identifier: Apache-2.0
"""The version of this project: the one place where it stands."""

PADDLE = "paddlepaddle>=2.6.2,<3.4"
"""What is asked for on a CPU, as in pyproject.toml."""

VERSION = "0.1.0"
