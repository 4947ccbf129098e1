"""The workloads there are, by name, in the order of the table."""

from __future__ import annotations

from benchmarks.speed import dpo, grpo, r1_zero, reward_model, rollouts, sft, tiny, unequal
from benchmarks.speed.workload import Workload

MODULES = (sft, dpo, reward_model, grpo, rollouts, unequal, tiny, r1_zero)
WORKLOADS: dict[str, Workload] = {w.name: w for module in MODULES for w in module.WORKLOADS}


def chosen(only: str | None) -> list[Workload]:
    """Those named, a prefix naming all that begin with it ("tiny"). Raises SystemExit for what there is not."""
    if only is None:
        return list(WORKLOADS.values())
    found: dict[str, Workload] = {}
    for wanted in only.split(","):
        exact = {wanted: WORKLOADS[wanted]} if wanted in WORKLOADS else {}
        matching = exact or {n: w for n, w in WORKLOADS.items() if n.startswith(wanted)}
        if not matching:
            raise SystemExit(f"no workload is called {wanted!r}; there are {', '.join(WORKLOADS)}")
        found |= matching
    return list(found.values())
