"""Diagnostic tasks with known best returns, as `statewise/<Name>-v0`."""

import gymnasium

TASKS = {
    "statewise/MemoryChain-v0": "statewise.envs.tasks.memory_chain:MemoryChain",
    "statewise/TMaze-v0": "statewise.envs.tasks.t_maze:TMaze",
    "statewise/RepeatPrevious-v0": "statewise.envs.tasks.repeat_previous:RepeatPrevious",
    "statewise/RtgDial-v0": "statewise.envs.tasks.rtg_dial:RtgDial",
    "statewise/DelayedCue-v0": "statewise.envs.tasks.delayed_cue:DelayedCue",
    "statewise/DoubleIntegrator-v0": "statewise.envs.tasks.double_integrator:DoubleIntegrator",
    "statewise/DelayedOffer-v0": "statewise.envs.tasks.delayed_offer:DelayedOffer",
    "statewise/Catch-v0": "statewise.envs.tasks.catch:Catch",
    "statewise/DistractingHallway-v0": (
        "statewise.envs.tasks.distracting_hallway:DistractingHallway"
    ),
    "statewise/MultiDoorsKeys-v0": "statewise.envs.tasks.multi_doors_keys:MultiDoorsKeys",
    "statewise/DarkRoom-v0": "statewise.envs.tasks.dark_room:DarkRoom",
    "statewise/DarkKeyToDoor-v0": "statewise.envs.tasks.dark_key_to_door:DarkKeyToDoor",
    "statewise/Bandit-v0": "statewise.envs.tasks.bandit:Bandit",
    "statewise/ProjectedCartPole-v0": "statewise.envs.tasks.projected_cart_pole:ProjectedCartPole",
}
"""Id -> the single environment; the vector environment beside it has `Vector` added."""


def register() -> None:
    """Make the ids known to gymnasium; calling it again changes nothing."""
    for task_id, entry_point in TASKS.items():
        if task_id not in gymnasium.registry:
            gymnasium.register(
                task_id, entry_point=entry_point, vector_entry_point=f"{entry_point}Vector"
            )
