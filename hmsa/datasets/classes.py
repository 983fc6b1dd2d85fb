# SPDX-License-Identifier: Apache-2.0
"""What the numbers in label maps stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from hmsa.visualize import palette


@dataclass(frozen=True)
class Classes:
    """The K classes of label maps: number k has the k-th name and colour."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # red, green, blue, each 0 to 255
    ignore_index: int = 255  # in labels: of pixels that belong to no class
    raw_values: Optional[tuple[int, ...]] = None  # 0 to 255, of the classes in the data set's own files, if others

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.colors) == len(self.raw_values or self.names)

    @classmethod
    def numbered(cls, count: int, ignore_index: int = 255) -> Classes:
        """Classes of which nothing is known: "class 0", ... in the colours of PaddleSeg's palette."""
        red, green, blue = (palette(count)[channel::3] for channel in range(3))
        return cls(
            names=tuple(f"class {index}" for index in range(count)),
            colors=tuple(zip(red, green, blue)),
            ignore_index=ignore_index,
        )

    def __len__(self) -> int:
        """How many there are, K."""
        return len(self.names)
