"""Claims about world models that are trained and checked in a moment, without processes."""

from typing import Any

WORLD: dict[str, Any] = {
    "agent.world.latents": {"num": 2, "classes": 2},
    "agent.world.encoder": {"hidden": [4]},
    "agent.world.decoder": {"hidden": [4]},
    "agent.world.heads": {"hidden": [4]},
}
PARALLEL: dict[str, Any] = {
    "deter": 4,
    "input_hidden": [],
    "prior_hidden": [4],
    "posterior_hidden": [4],
    "sequence": {"kind": "s5", "num_layers": 1, "d_model": 4, "s5": {"state_size": 2}},
}
RSSM: dict[str, Any] = {"deter": 4, "units": 4, "prior_hidden": [4], "posterior_hidden": [4]}
FROM_DATA: dict[str, Any] = WORLD | {
    "total_updates": 4,
    "log_every": 2,
    "agent.batch_size": 2,
    "agent.length": 4,
    "eval.every_updates": 1,
    "eval.samples": 1,
}
AGENT: dict[str, Any] = WORLD | {
    "total_steps": 48,
    "log_every": 1,
    "env.num_envs": 4,
    "env.kwargs.delay": 2,
    "windows": {"batch_size": 2, "length": 4, "train_ratio": 1.0, "prefill": 24},
    "agent.behavior.num_starts": 4,
    "agent.behavior.horizon": 2,
    "agent.behavior.actor_hidden": [4],
    "agent.behavior.critic_hidden": [4],
    "eval": {"episodes": 4, "num_envs": 4, "every_steps": 16, "kwargs": {"pays": "decision"}},
}
GRU: dict[str, Any] = {
    "agent.world.core": "rssm",
    "agent.world.parallel": {},
    "agent.world.rssm": RSSM,
}
SIGN, RETURN = "eval/reward_sign_inference", "eval/return_mean"


def claim_from_data() -> dict[str, Any]:
    """Return a claim about an S5 and a GRU: the first two checks hold, the third does not."""
    offer = {"make": "delayed-offer", "length": 2, "episodes": 6}
    arm = {"preset": "s4wm/delayed_offer", "data": "train", "held_out": "take"}
    s5 = FROM_DATA | {"agent.world.parallel": PARALLEL}
    return {
        "title": "T",
        "statement": "S",
        "seeds": [1],
        "episodes": 5,
        "data": {
            "train": offer | {"levels": ["mixed-bright"]},
            "take": offer | {"levels": ["take-bright"], "seed": 1},
        },
        "arms": [
            {"name": "s5", "overrides": s5, **arm},
            {"name": "gru", "overrides": FROM_DATA | GRU, **arm},
        ],
        "checks": [
            {"arm": "s5", "metric": SIGN, "reaches": 0, "statistic": "max", "at_most": 1},
            {
                "arm": "gru",
                "ratio_to": "s5",
                "metric": SIGN,
                "reaches": 1.5,
                "statistic": "median",
                "at_least": 1.3,
            },
            {
                "arm": "s5",
                "metric": "generation.entries.obs.mse",
                "statistic": "min",
                "at_most": -1,
            },
        ],
    }


def claim_of_agents() -> dict[str, Any]:
    """Return a claim about R2I and Dreamer as points of two lines."""
    return {
        "title": "T",
        "statement": "S",
        "seeds": [1],
        "episodes": 4,
        "actions": "sample",
        "axis": "delay, steps",
        "arms": [
            {
                "name": "r2i_2",
                "preset": "r2i/delayed_offer",
                "series": "r2i",
                "at": 2,
                "overrides": AGENT | {"agent.world.parallel": PARALLEL},
            },
            {
                "name": "dreamer_2",
                "preset": "dreamer/delayed_offer",
                "series": "dreamer",
                "at": 2,
                "overrides": AGENT | {"agent.world.rssm": RSSM},
            },
        ],
        "checks": [
            {"arm": "r2i_2", "metric": RETURN, "last": 3, "statistic": "mean", "at_least": 0},
            {
                "arm": "dreamer_2",
                "metric": RETURN,
                "reaches": 2,
                "unit": "minutes",
                "statistic": "min",
                "at_most": 9,
            },
            {"arm": "dreamer_2", "statistic": "max", "at_most": 1},
        ],
    }
