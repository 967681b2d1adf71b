"""Decision Transformer against the arrays of its authors, and attention against a loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
    GPTCore,
    build_policy,
    visible,
)
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows
from statewise.data.samplers import WindowConfig
from tests import golden_files
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, ORACLE_FLOAT64, assert_within

NAMES = {
    "embed_timestep": "tokens.embed_time",
    "embed_return": "tokens.embed_return",
    "embed_state": "tokens.embed_obs",
    "embed_action": "tokens.embed_action",
    "embed_ln": "tokens.norm",
    "predict_action.0": "head.linear",
    "transformer.ln_f": "core.norm",
}
BLOCK = {
    "ln_1": "norm_attention",
    "attn.c_attn": "qkv",
    "attn.c_proj": "out",
    "ln_2": "norm_mlp",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}


def own_name(name: str) -> str | None:
    """Return our name of a parameter of the authors; None where we have none."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    if not stem.startswith("transformer.h."):
        return None
    _, _, number, rest = stem.split(".", 3)
    return f"core.blocks.{number}.{BLOCK[rest]}.{kind}" if rest in BLOCK else None


def is_input_major(name: str) -> bool:
    return name.startswith("transformer.h.") and name.endswith(
        ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    )


def golden_policy(arrays: dict[str, Tensor], meta: dict[str, Any]) -> SequencePolicy:
    """Return our network with the authors' weights, in float64."""
    S, A = meta["S"], meta["A"]
    config = DecisionTransformerConfig(
        d_model=meta["hidden"],
        num_layers=meta["layers"],
        num_heads=meta["heads"],
        num_timesteps=len(arrays["p_embed_timestep.weight"]),
        return_scale=1.0,
        dropout=0.0,
    )
    policy = build_policy(
        config,
        spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (S,))}),
        spaces.Box(-1, 1, (A,)),
        ObsStatistics({"obs": np.zeros(S)}, {"obs": np.ones(S)}),
    ).double()
    weights = {key: x for key, x in policy.state_dict().items() if key.startswith("inputs.")}
    for key, x in arrays.items():
        name = own_name(key.removeprefix("p_")) if key.startswith("p_") else None
        if name is not None:
            weights[name] = x.T.contiguous() if is_input_major(key.removeprefix("p_")) else x
    policy.load_state_dict(weights)  # strict: every weight of ours has been given
    return policy


def golden_rows(arrays: dict[str, Tensor]) -> PolicyRows:
    valid = arrays["in_mask"].bool()
    reset = torch.zeros_like(valid)
    reset[torch.arange(len(valid)), valid.long().argmax(1)] = True  # where left padding ends
    return PolicyRows(
        obs=arrays["in_states"],
        action=arrays["in_actions"],
        previous=torch.zeros_like(arrays["in_actions"]),
        rtg=arrays["in_rtg"][..., 0],
        timestep=arrays["in_timesteps"].long(),
        reset=reset,
    )


@pytest.mark.parametrize("name", golden_files.names("decision_transformer_*"))
def test_predictions_loss_and_gradients_are_those_of_the_authors(name: str) -> None:
    arrays, meta = golden_files.load(name)
    policy, rows = golden_policy(arrays, meta), golden_rows(arrays)
    valid = arrays["in_mask"].bool()
    predicted = policy(rows)
    assert_within(predicted[valid], arrays["out_action_pred"][valid], GOLDEN_VALUE)
    loss = policy.code.loss(predicted, rows.action)[valid].mean()
    assert_within(loss, arrays["out_loss"], GOLDEN_VALUE)
    loss.backward()
    compared = 0
    for key, expected in arrays.items():
        if not key.startswith("grad_"):
            continue
        ours = own_name(key.removeprefix("grad_"))
        assert ours is not None, key
        grad = policy.get_parameter(ours).grad
        assert grad is not None, key
        if is_input_major(key.removeprefix("grad_")):
            grad = grad.T
        assert_within(grad, expected, GOLDEN_GRADIENT)
        compared += 1
    assert compared == 4
    # The action token also feeds heads that are not ours: its features are those of the authors.
    features = policy.at(policy.outputs(rows), 2)
    for head, out in (("predict_state", "out_state_pred"), ("predict_return", "out_return_pred")):
        other = features @ arrays[f"p_{head}.weight"].T + arrays[f"p_{head}.bias"]
        assert_within(other[valid], arrays[out][valid], GOLDEN_VALUE)


def test_tokens_see_those_before_them_since_the_last_reset() -> None:
    reset = torch.tensor([[True, False, False, True, False, True]])
    segment = [0, 0, 0, 1, 1, 2]
    expected = [[j <= i and segment[i] == segment[j] for j in range(6)] for i in range(6)]
    assert visible(reset)[0].tolist() == expected


def test_a_block_is_that_of_a_loop() -> None:
    D, H, L = 6, 2, 5
    core = GPTCore(D, 1, H, dropout=0.0).double()
    block = core.blocks[0]
    x = torch.randn(1, L, D, dtype=torch.float64)

    def norm(v: Tensor) -> Tensor:
        return (v - v.mean()) / (v.var(correction=0) + 1e-5).sqrt()

    with torch.no_grad():
        q, k, v = torch.stack([block.qkv(norm(x[0, i])) for i in range(L)]).split(D, 1)
        expected = []
        for i in range(L):
            heads = []
            for part in (slice(0, D // H), slice(D // H, D)):
                scores = [math.exp(q[i, part] @ k[j, part] / (D // H) ** 0.5) for j in range(i + 1)]
                mixed = sum(s * v[j, part] for j, s in enumerate(scores))
                heads.append(mixed / sum(scores))
            y = x[0, i] + block.out(torch.cat(heads))
            y = y + block.down(block.up(norm(y)).clamp(min=0))
            expected.append(norm(y))
        for reset in (None, torch.zeros(1, L, dtype=torch.bool)):
            assert_within(core(x, None, reset)[0][0], torch.stack(expected), ORACLE_FLOAT64)


def test_the_defaults_are_the_papers() -> None:
    space = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (11,))})
    statistics = ObsStatistics({"obs": np.zeros(11)}, {"obs": np.ones(11)})
    agent = DecisionTransformer(
        DecisionTransformerConfig(),
        space,
        spaces.Box(-1, 1, (3,)),
        statistics=statistics,
        total_updates=1,
        seed=0,
    )
    count = sum(p.numel() for p in agent.policy.parameters())
    # The release has two heads that no loss trains, and a table of one word.
    assert count == 727_695 - (128 * 11 + 11) - (128 + 1) - 128
    assert agent.sampling == WindowConfig(length=20, batch_size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "context: expected at least 1, got 0"),
        ({"num_layers": 0}, "num_layers: expected at least 1"),
        ({"num_timesteps": 0}, "num_timesteps: expected at least 1"),
        ({"num_heads": 3}, "num_heads: expected a divisor of d_model 128, got 3"),
    ],
)
def test_sizes_that_make_no_network_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionTransformerConfig(**changes)
