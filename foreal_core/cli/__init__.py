"""The `foreal` command."""

from foreal_core.cli.command_line import COMMANDS as COMMANDS, main as main
from foreal_core.cli.common import (
    EXIT_BROKEN_PIPE as EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED as EXIT_INTERRUPTED,
)
