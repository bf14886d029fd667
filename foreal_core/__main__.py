"""`python -m foreal_core` is the `foreal` command."""

import sys

from foreal_core.cli import main

sys.exit(main())
