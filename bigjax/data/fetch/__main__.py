"""`python -m bigjax.data.fetch NAME`, what scripts/fetch_data runs."""

import sys

from bigjax.data.fetch import main

sys.exit(main(sys.argv[1:]))
