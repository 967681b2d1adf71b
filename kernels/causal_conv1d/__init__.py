"""The short causal convolution of Mamba, with state and resets; see README.md."""
