"""Scans over time: arrays in, arrays out, with resets, on several backends."""

from statewise.kernels.acting.op import (
    BlockForm,
    DenseLayer,
    LatentModel,
    dense_layers,
    dense_layers_run,
    diagonal_blocks_step,
    diagonal_blocks_step_runs,
    imagine_step,
    imagine_step_runs,
    join_step,
    join_step_runs,
    lti_blocks_step,
    lti_blocks_step_runs,
    mamba_step,
    mamba_step_runs,
    rms_norm,
    stack_steps,
)
from statewise.kernels.categorical.op import draw_one_hot, free_kl, gumbel_, mixed_log_softmax
from statewise.kernels.causal_conv1d.op import causal_conv1d, conv_step
from statewise.kernels.convolution.op import (
    cauchy,
    dplr_kernel,
    fft_conv,
    truncated_output,
    vandermonde,
    vandermonde_pairs,
)
from statewise.kernels.delta_rule.op import delta_rule, delta_rule_step
from statewise.kernels.discounted_scan.op import discounted_scan
from statewise.kernels.dispatch import BACKENDS, Backend, BackendError
from statewise.kernels.fused.op import (
    add_scaled,
    gated_sum,
    gelu,
    norm_silu,
    s5_system,
    s5_system_runs,
    two_hot_loss,
)
from statewise.kernels.linear_scan.op import linear_scan, linear_scan_pairs
from statewise.kernels.selective_scan.op import (
    selective_scan,
    selective_scan_pairs,
    selective_step,
)
from statewise.kernels.ssd_scan.op import ssd_scan, ssd_step
from statewise.kernels.ssm_scan_lti.op import ssm_scan_lti, ssm_scan_lti_pairs, ssm_scan_lti_step

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendError",
    "BlockForm",
    "DenseLayer",
    "LatentModel",
    "add_scaled",
    "cauchy",
    "causal_conv1d",
    "conv_step",
    "delta_rule",
    "delta_rule_step",
    "dense_layers",
    "dense_layers_run",
    "diagonal_blocks_step",
    "diagonal_blocks_step_runs",
    "discounted_scan",
    "dplr_kernel",
    "draw_one_hot",
    "fft_conv",
    "free_kl",
    "gated_sum",
    "gelu",
    "gumbel_",
    "imagine_step",
    "imagine_step_runs",
    "join_step",
    "join_step_runs",
    "linear_scan",
    "linear_scan_pairs",
    "lti_blocks_step",
    "lti_blocks_step_runs",
    "mamba_step",
    "mamba_step_runs",
    "mixed_log_softmax",
    "norm_silu",
    "rms_norm",
    "s5_system",
    "s5_system_runs",
    "selective_scan",
    "selective_scan_pairs",
    "selective_step",
    "ssd_scan",
    "ssd_step",
    "ssm_scan_lti",
    "ssm_scan_lti_pairs",
    "ssm_scan_lti_step",
    "stack_steps",
    "truncated_output",
    "two_hot_loss",
    "vandermonde",
    "vandermonde_pairs",
]
