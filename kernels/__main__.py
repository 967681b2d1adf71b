"""`python -m statewise.kernels` builds the C++ kernels ahead of their first use."""

from statewise.kernels.extension import main

if __name__ == "__main__":
    raise SystemExit(main())
