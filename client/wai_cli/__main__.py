"""Run `wai` as `python -m wai_cli`."""

import sys

from .main import main

sys.exit(main())
