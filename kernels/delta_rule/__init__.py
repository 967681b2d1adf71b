"""The gated delta rule; see README.md."""
