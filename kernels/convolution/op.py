"""The public functions of the convolution mode: the convolution, and what makes its kernels."""

from statewise.kernels.convolution.cauchy import cauchy
from statewise.kernels.convolution.dplr import dplr_kernel, truncated_output
from statewise.kernels.convolution.fft import fft_conv
from statewise.kernels.convolution.vandermonde import vandermonde, vandermonde_pairs

__all__ = [
    "cauchy",
    "dplr_kernel",
    "fft_conv",
    "truncated_output",
    "vandermonde",
    "vandermonde_pairs",
]
