"""Side-by-side measurements against named peers, and learning claims with their checks."""
