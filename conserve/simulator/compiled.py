"""The modules that a simulation spends its time in, compiled to C by mypyc: the same code and figures, only faster.

They lie in a folder outside the sources, named by a digest of these. Who changes a source is back at the interpreted
modules, so nothing out of date is ever used, and nothing has to be compiled before it can be tried.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Final

import conserve.policy
import conserve.simulator

MODULES: Final = (
    "conserve.policy.checkpoint",
    "conserve.policy.crowding",
    "conserve.policy.kv_reserve",
    "conserve.policy.latency",
    "conserve.policy.outlook",
    "conserve.policy.pass_rates",
    "conserve.policy.pass_stop",
    "conserve.policy.preemption",
    "conserve.policy.prefix_groups",
    "conserve.policy.prefix_memory",
    "conserve.policy.request_size",
    "conserve.policy.routing",
    "conserve.policy.token_budget",
    "conserve.simulator.capacity_meter",
    "conserve.simulator.cluster",
    "conserve.simulator.coarse_steps",
    "conserve.simulator.decodes",
    "conserve.simulator.engine_state",
    "conserve.simulator.gateway",
    "conserve.simulator.harvest_limits",
    "conserve.simulator.harvest_planner",
    "conserve.simulator.host_copies",
    "conserve.simulator.kv_memory",
    "conserve.simulator.making_way",
    "conserve.simulator.metrics",
    "conserve.simulator.offline_filling",
    "conserve.simulator.online_demand",
    "conserve.simulator.policies",
    "conserve.simulator.progress",
    "conserve.simulator.replica",
    "conserve.simulator.request",
    "conserve.simulator.router",
    "conserve.simulator.step",
    "conserve.simulator.stock_planner",
    "conserve.simulator.stopped_pass",
    "conserve.simulator.supply",
)
"""Those that mypyc can compile: `prefix_order` has a generic dataclass with slots, `engine_costs` a pydantic model."""

SOURCES: Final = Path(conserve.policy.__file__ or "").parent.parent.parent
_PACKAGES: Final = (conserve.policy, conserve.simulator)


def find_build(folder: Path) -> Path:
    """Where in `folder` the modules that were compiled from the present sources are, or would be."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.machine()}".encode())
    for package in _PACKAGES:
        # Not only those that are compiled: these rely on the types of the others.
        for source in sorted(Path(package.__file__ or "").parent.glob("*.py")):
            digest.update(f"\n{source.name}\n".encode())
            digest.update(source.read_bytes())
    return folder / digest.hexdigest()[:16]


def use_compiled(folder: Path) -> bool:
    """Lets later imports take the compiled modules, if there are any. Returns whether they do.

    Args:
        folder: What `compiling.compile_modules` was called with.
    """
    build = find_build(folder)
    # Compiled modules know each other's types: all of them are compiled, or none is.
    if not build.is_dir() or any(name in sys.modules for name in MODULES):
        return False
    sys.path.append(str(build))  # The library that they have in common is there.
    for package in _PACKAGES:
        package.__path__.insert(0, str(build.joinpath(*package.__name__.split("."))))
    return True
