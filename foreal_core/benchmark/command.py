"""The command line that measurements of one pair share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from foreal_core.benchmark.subject import BUNDLED, Subject, load_subject
from foreal_core.errors import FoReaLError


def pair_parser(description: str | None, pair: str = BUNDLED) -> argparse.ArgumentParser:
    """A parser with the options of `load_subject`.

    Args:
        description: of the command.
        pair: what is measured where nothing else is asked for.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pair", default=pair, help="bundled, or a real size")
    parser.add_argument("--dtype", help="bfloat16, float32, ...")
    parser.add_argument("--device", help="where the models go")
    return parser


def print_record(
    parser: argparse.ArgumentParser,
    measure: Callable[[Subject, argparse.Namespace], dict[str, Any]],
) -> None:
    """Prints what is measured on the pair that the command line names, as one JSON object; an error
    ends the command with its message."""
    arguments = parser.parse_args()
    try:
        subject = load_subject(arguments.pair, dtype=arguments.dtype, device=arguments.device)
        record = measure(subject, arguments)
    except FoReaLError as error:
        parser.error(str(error))
    print(json.dumps(record, indent=1))
