"""`python -m foreal_core` is the `foreal` command."""

import sys

from foreal_core.cli.command_line import main

sys.exit(main())
