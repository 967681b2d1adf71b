"""transformers' Decision Transformer, the peer of `bench offline`, and its weights as ours.

transformers adds a row of a table of positions to every token, always the first one, which is the
bias of the norm before it; its heads for observations and returns are not learned by the loss.
Everything else is the network of `agents/offline/decision_transformer.py`.
"""

import sys
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows

NUM_TIMESTEPS = 1000
ENDS = {
    "tokens.embed_time": "embed_timestep",
    "tokens.embed_return": "embed_return",
    "tokens.embed_obs": "embed_state",
    "tokens.embed_action": "embed_action",
    "tokens.norm": "embed_ln",
    "core.norm": "encoder.ln_f",
    "head.linear": "predict_action.0",
}
IN_BLOCK = {
    "norm_attention": "ln_1",
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "norm_mlp": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
TRANSPOSED = ("qkv.weight", "out.weight", "up.weight", "down.weight")  # inputs first there
POSITIONS = "encoder.wpe.weight"
# Of its kinds of attention the faster one: dropout slows down the fused one, its default.
ATTENTION = {"train": "eager", "act": "sdpa"}


def _transformers() -> Any:
    """Return the module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    # It asks for a package `kernels`, and from the top of a checkout would import our folder.
    found = sys.modules.pop("kernels", None)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        module: Any = import_module("transformers")
        module.DecisionTransformerModel  # noqa: B018 - a lazy module: this imports it
    finally:
        del sys.modules["kernels"]
        if found is not None:
            sys.modules["kernels"] = found
    return module


def make_peer(num_obs: int, num_actions: int, width: int, num_layers: int, mode: str) -> nn.Module:
    """Return the network with one head and its default dropout, for "train" or "act".

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    transformers = _transformers()
    config = transformers.DecisionTransformerConfig(
        state_dim=num_obs,
        act_dim=num_actions,
        hidden_size=width,
        n_layer=num_layers,
        n_head=1,
        attn_implementation=ATTENTION[mode],
        max_ep_len=NUM_TIMESTEPS,
        bos_token_id=None,  # there are no words; the defaults lie outside the table of words
        eos_token_id=None,
    )
    model: nn.Module = transformers.DecisionTransformerModel(config)
    return model


def predict(peer: nn.Module, rows: PolicyRows, return_scale: float) -> Tensor:
    """Return the peer's actions (B, T, A) for the inputs of our policy, T <= 1000."""
    _, actions, _ = peer(
        states=rows.obs,
        actions=rows.action,
        returns_to_go=rows.rtg.unsqueeze(-1) / return_scale,
        timesteps=rows.timestep,
        return_dict=False,
    )
    return actions


def peer_name(own: str) -> str:
    """Return what transformers calls a parameter of ours."""
    stem, _, kind = own.rpartition(".")
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    _, _, number, layer = stem.split(".")  # core.blocks.0.qkv
    return f"encoder.h.{number}.{IN_BLOCK[layer]}.{kind}"


def as_ours(own: str, value: Tensor) -> Tensor:
    """Return a parameter or gradient of transformers in the axes of ours, of that name."""
    return value.T.contiguous() if own.endswith(TRANSPOSED) else value


def copy_weights(peer: nn.Module, policy: SequencePolicy) -> None:
    """Give our Decision Transformer the weights of transformers', of the same sizes."""
    theirs = peer.state_dict()
    own = policy.state_dict()
    for name, _ in policy.named_parameters():
        own[name] = as_ours(name, theirs[peer_name(name)])
    own["tokens.norm.bias"] = own["tokens.norm.bias"] + theirs[POSITIONS][0]
    policy.load_state_dict(own)
