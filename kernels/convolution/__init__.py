"""Long convolutions, and the kernels of S4, S4D and DSS that they convolve with."""
