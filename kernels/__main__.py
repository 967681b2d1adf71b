"""`python -m statewise.kernels [OP ...]` builds the C++ kernels ahead of their first use."""

import sys

from statewise.kernels.extension import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
