"""`python -m wai_cli` is `wai`."""

import sys

from .main import main

sys.exit(main())
