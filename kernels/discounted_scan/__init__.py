"""The discounted scan and its backends."""
