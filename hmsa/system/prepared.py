# SPDX-License-Identifier: Apache-2.0
"""Imported before Paddle by every part of this project that loads it: the library is prepared as the scripts are.

The one module whose import has an effect: that of `hmsa.system.environment.prepare`.
"""

from __future__ import annotations

from hmsa.system.environment import prepare

prepare()
