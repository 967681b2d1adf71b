"""What training calls once instead of many small operations; see README.md."""
