"""`python -m scripts.fetch NAME`, what scripts/fetch_data runs."""

import sys

from scripts.fetch import main

sys.exit(main(sys.argv[1:]))
