"""`python -m app serve` is `darkroom serve`."""

import sys

from app.cli import main

sys.exit(main())
