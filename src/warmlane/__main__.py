"""`python -m warmlane` is the same as the `warmlane` command."""

import sys

from warmlane.router.cli import main

sys.exit(main())
