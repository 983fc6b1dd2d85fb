# SPDX-License-Identifier: Apache-2.0
"""What the Specs of components and sections are made of. A validator's message completes "expected <key> to be ..."."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

MAX_CLASSES = 255
"""Of a network: label maps have 8 bits, and one of their values, 255 if nothing else is said, marks ignored pixels."""

MAX_CLASSES_WITH_VALUES = 254
"""Of a network whose masks hold other values: one number of 8 bits is left for what no class means."""

MAX_CHANNELS = 16
"""Of an image."""


# --- Sections and components. ---


class Section(BaseModel):
    """A mapping of the YAML; keys it does not name are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Component(Section):
    """`{type: Name, **arguments}`; the arguments are the other fields of the Spec."""

    type: str
    """Name of the component; the other keys are its arguments."""


class Unchecked(Component):
    """A component whose arguments are left to the builder, as one of PaddleSeg's."""

    model_config = ConfigDict(extra="allow")


def arguments(spec: Component) -> dict[str, Any]:
    """The arguments of a component: everything but its `type`, in plain Python values."""
    return spec.model_dump(exclude={"type"})


# --- Numbers. Upper ends are far above what makes sense, and below what ends in an overflow or takes all memory. ---


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Bands = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]  # of an image
Label = Annotated[int, Field(ge=0, le=255)]
Pixels = Annotated[int, Field(ge=1, le=2**30)]  # of an image; OpenCV decodes no more
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Side = Annotated[int, Field(ge=64, le=16384)]  # of a crop: at scale 0.5 the coarsest branch (stride 32) has one pixel
Scale = Annotated[float, Field(ge=1 / 16, le=16)]
Level = Annotated[float, Field(ge=0, le=255)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


def _check_classes(count: int) -> int:
    if count < 2:
        raise ValueError("at least 2 (the background is a class too: 0, beside the foreground's 1)")
    if count > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES}, the classes that a label map of 8 bits holds beside ignored pixels")
    return count


ClassCount = Annotated[
    int, AfterValidator(_check_classes), WithJsonSchema({"type": "integer", "minimum": 2, "maximum": MAX_CLASSES})
]


# --- Lists and texts. ---


def _check_weights(weights: list[float]) -> list[float]:
    if not any(weights):
        raise ValueError("a list with a number above 0, or there is nothing to train")
    return weights


def _check_value(value: Any) -> Any:
    is_color = isinstance(value, list)
    numbers = value if is_color and len(value) == 3 else [value]
    if not all(type(number) is int and 0 <= number <= (255 if is_color else 65535) for number in numbers):
        raise ValueError("a number from 0 to 65535, or a colour [red, green, blue] of numbers from 0 to 255")
    return value


def _check_padding(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(number) in (int, float) and 0 <= number <= 255 for number in numbers):
        raise ValueError("a number from 0 to 255, or a list of one for each channel")
    return value if isinstance(value, list) else float(value)


Size = Annotated[list[Count], Field(min_length=2, max_length=2)]
"""[width, height]"""

_LEVEL = {"type": "number", "minimum": 0, "maximum": 255}
_LEVELS = {"anyOf": [_LEVEL, {"type": "array", "items": _LEVEL, "minItems": 1}]}
Padding = Annotated[Any, AfterValidator(_check_padding), WithJsonSchema(_LEVELS)]
"""Of images, 0 to 255 whatever numbers they hold: one for all channels, or a list of one for each"""

CropSize = Annotated[list[Side], Field(min_length=2, max_length=2)]
Weights = Annotated[list[NonNegative], Field(min_length=1), AfterValidator(_check_weights)]
Text = Annotated[str, Field(min_length=1)]
Split = Literal["train", "val", "test"]
_VALUE = "numbers, or colours [red, green, blue]"
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 65535}
_COLOR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
_VALUE_SCHEMA = WithJsonSchema({"anyOf": [_NUMBER, _COLOR], "description": _VALUE})
Values = Annotated[list[Annotated[Any, AfterValidator(_check_value), _VALUE_SCHEMA]], Field(min_length=1)]
"""What masks hold: numbers, or colours [red, green, blue]"""
