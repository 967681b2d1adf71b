"""The literal table of agents."""

from collections.abc import Callable
from typing import Any, NamedTuple

from statewise.agents.imagination.agent import ImaginationAgent
from statewise.agents.imagination.systems import DramaConfig, DreamerConfig, R2IConfig
from statewise.agents.imagination.world_learner import S4WMConfig, WorldLearner
from statewise.agents.offline.algorithm_distillation import (
    AlgorithmDistillation,
    AlgorithmDistillationConfig,
)
from statewise.agents.offline.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from statewise.agents.offline.decision_mamba import DecisionMamba, DecisionMambaConfig
from statewise.agents.offline.decision_mamba_mg import DecisionMambaMG, DecisionMambaMGConfig
from statewise.agents.offline.decision_s4 import DecisionS4, DecisionS4Config
from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
)
from statewise.agents.offline.iql import IQL, IQLConfig
from statewise.agents.offline.td3_bc import TD3BC, TD3BCConfig
from statewise.agents.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from statewise.agents.recurrent_sac import RecurrentSAC, RecurrentSACConfig


class AgentRow(NamedTuple):
    """One system of the suite."""

    config: type[Any]
    make: Callable[..., Any]
    """Makes the agent: of "online" an `Agent`, of "replay" and "world" a `ReplayAgent`, of
    "offline" an `OfflineAgent`, of "world_data" a `WorldLearner`."""
    loop: str
    """Where it learns: "online" in its environment, "replay" there too, from a replay, "world" from
    a replay and in imagination, "offline" from data, "world_data" a world model alone, from
    data."""
    about: str
    page: str


AGENTS: dict[str, AgentRow] = {
    "ppo": AgentRow(
        RecurrentPPOConfig,
        RecurrentPPO,
        "online",
        "recurrent PPO on any sequence layer (Schulman et al. 2017; Lu et al. 2023)",
        "docs/systems/recurrent_ppo.md",
    ),
    "sac": AgentRow(
        RecurrentSACConfig,
        RecurrentSAC,
        "replay",
        "recurrent soft actor-critic on any sequence layer, Box actions (Haarnoja et al. 2018)",
        "docs/systems/recurrent_sac.md",
    ),
    "dt": AgentRow(
        DecisionTransformerConfig,
        DecisionTransformer,
        "offline",
        "Decision Transformer: actions from returns to go, by attention (Chen et al. 2021)",
        "docs/systems/decision_transformer.md",
    ),
    "decision_s4": AgentRow(
        DecisionS4Config,
        DecisionS4,
        "offline",
        "Decision S4: a state-space policy on whole episodes (Bar David et al. 2023)",
        "docs/systems/decision_s4.md",
    ),
    "decision_mamba": AgentRow(
        DecisionMambaConfig,
        DecisionMamba,
        "offline",
        "Decision Mamba: Decision Transformer with Mamba for attention (Ota 2024)",
        "docs/systems/decision_mamba.md",
    ),
    "decision_mamba_mg": AgentRow(
        DecisionMambaMGConfig,
        DecisionMambaMG,
        "offline",
        "multi-grained Decision Mamba with self-evolution (Lv et al. 2024)",
        "docs/systems/decision_mamba.md",
    ),
    "ad": AgentRow(
        AlgorithmDistillationConfig,
        AlgorithmDistillation,
        "offline",
        "Algorithm Distillation: learns from histories to learn in context (Laskin et al. 2023)",
        "docs/systems/algorithm_distillation.md",
    ),
    "bc": AgentRow(
        BehaviorCloningConfig,
        BehaviorCloning,
        "offline",
        "behaviour cloning; of the best episodes with data.keep_best (Chen et al. 2021)",
        "docs/systems/value_based.md",
    ),
    "td3bc": AgentRow(
        TD3BCConfig,
        TD3BC,
        "offline",
        "TD3+BC: policy gradient beside a regression, Box actions (Fujimoto & Gu 2021)",
        "docs/systems/value_based.md",
    ),
    "iql": AgentRow(
        IQLConfig,
        IQL,
        "offline",
        "IQL: values of the better actions in the data (Kostrikov et al. 2021)",
        "docs/systems/value_based.md",
    ),
    "dreamer": AgentRow(
        DreamerConfig,
        ImaginationAgent,
        "world",
        "DreamerV3: actor-critic in the imagination of a GRU world model (Hafner et al. 2023)",
        "docs/systems/dreamer.md",
    ),
    "r2i": AgentRow(
        R2IConfig,
        ImaginationAgent,
        "world",
        "R2I: Dreamer with a state-space layer, whole windows in one scan (Samsami et al. 2024)",
        "docs/systems/r2i.md",
    ),
    "drama": AgentRow(
        DramaConfig,
        ImaginationAgent,
        "world",
        "Drama: Dreamer with Mamba, windows drawn by how often they were seen (Wang et al. 2025)",
        "docs/systems/drama.md",
    ),
    "s4wm": AgentRow(
        S4WMConfig,
        WorldLearner,
        "world_data",
        "S4WM: a world model from data, judged by what it imagines (Deng et al. 2023)",
        "docs/systems/s4wm.md",
    ),
}
