"""Scans over time: arrays in, arrays out, with resets, on several backends."""

from statewise.kernels.causal_conv1d.op import causal_conv1d, conv_step
from statewise.kernels.discounted_scan.op import discounted_scan
from statewise.kernels.dispatch import BACKENDS, Backend, BackendError
from statewise.kernels.linear_scan.op import linear_scan, linear_scan_pairs
from statewise.kernels.selective_scan.op import (
    selective_scan,
    selective_scan_pairs,
    selective_step,
)
from statewise.kernels.ssd_scan.op import ssd_scan, ssd_step

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendError",
    "causal_conv1d",
    "conv_step",
    "discounted_scan",
    "linear_scan",
    "linear_scan_pairs",
    "selective_scan",
    "selective_scan_pairs",
    "selective_step",
    "ssd_scan",
    "ssd_step",
]
