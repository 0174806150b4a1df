"""A decoder that a picture has taken over: it answers with what the environment variable LANG holds."""

import os
import sys

sys.stdout.write(os.environ["LANG"] + "\n" + "0" * 100)
