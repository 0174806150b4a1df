"""A compromised decoder: it answers with the content of the environment variable LANG."""

import os
import sys

sys.stdout.write(os.environ["LANG"] + "\n" + "0" * 100)
