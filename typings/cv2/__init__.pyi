# SPDX-License-Identifier: Apache-2.0
# The OpenCV release PaddleSeg holds us to carries no type information.
from typing import Any

def __getattr__(name: str) -> Any: ...
