# SPDX-License-Identifier: Apache-2.0
"""Bring weights to another file format or to other tensor names. Needs no PyTorch, and runs nothing a file asks for."""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa import cli


def names_of_network(config_path: str, weights: Path) -> list[str]:
    """The tensors of a recipe's network, once all of `weights` fit it."""
    from hmsa.system.environment import prepare

    prepare()
    from hmsa.builder import build_model
    from hmsa.config.reading import load_config
    from hmsa.weights.loading import load_weights

    model = build_model(load_config(config_path))
    load_weights(model, weights)
    return list(model.state_dict())


def main(args: argparse.Namespace) -> None:
    from hmsa.errors import DataError, printable
    from hmsa.weights.files import read_weights, write_weights
    from hmsa.weights.loading import as_float32, listed, named_file
    from hmsa.weights.names import correspondence, is_counter, original_name, recognised, released_name

    rename = {"hmsa": str, "released": released_name, "original": original_name}[args.names]
    file, source = named_file(args.input)
    arrays = read_weights(file, source)
    names = names_of_network(args.config, file) if args.config else recognised(arrays)
    scheme, ours = correspondence(arrays, names)
    unknown = [name for name in arrays if name not in ours and not is_counter(name)]
    if unknown or not ours:
        raise DataError(
            f"{source}: expected the tensors of an HMSA network or its backbone, found {len(unknown)} others "
            f"({listed(unknown)}); give other weights, or --config if the network has a backbone of PaddleSeg's"
        )
    converted, lines = {}, []
    for before, name in ours.items():
        after = rename(name)
        if not after:
            raise DataError(f"{source}: {name} has no name among the {args.names} ones; use --names hmsa")
        try:
            converted[after] = as_float32(arrays[before])
        except ValueError as error:
            raise DataError(f"{source}: expected weights, found {error} in {before}; give other weights") from error
        lines.append(f"{before} -> {after} {list(arrays[before].shape)}")
    lines += [f"{printable(name)} dropped" for name in arrays if is_counter(name)]
    kept = write_weights(args.output, converted, keep_earlier=True)
    print(*lines, sep="\n")
    dropped = len(arrays) - len(converted)
    print(
        f"{len(converted)} tensors ({scheme} names) written to {args.output}, {dropped} "
        f"counter{'' if dropped == 1 else 's'} dropped" + (f"; the earlier file is kept as {kept}" if kept else "")
    )


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--input", required=True, help=".pth, .pdparams or .safetensors, a folder or an address")
    parser.add_argument(
        "--output", required=True, help=".pdparams or .safetensors file to write; an earlier one is kept"
    )
    parser.add_argument(
        "--names",
        choices=["hmsa", "released", "original"],
        default="hmsa",
        help="tensor names to write: this project's (default), those released with PaddleSeg, or the original's",
    )
    parser.add_argument("--config", help="recipe of the network that all the weights must fit, if it is to be checked")
    return parser
