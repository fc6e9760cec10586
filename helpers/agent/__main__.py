"""``python -m helpers.agent``: see :mod:`helpers.agent.cli`."""

import sys

from helpers.agent.cli import main

sys.exit(main())
