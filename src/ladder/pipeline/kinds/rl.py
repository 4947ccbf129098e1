"""The stage of reinforcement learning without a critic: rewards of sampled answers, group advantages, a policy loss.

Which algorithm it is, the fields say: GRPO (advantage group_std), Dr. GRPO (group_mean and loss.unit padded), RLOO
(leave_one_out), DAPO, GSPO, CISPO (loss).
"""

from __future__ import annotations

from pydantic import Field

from ladder.credit.advantages import AdvantageKind
from ladder.credit.group import GroupCredit
from ladder.pipeline.kinds.policy_rewards import Assigned, PolicyRewards
from ladder.pipeline.stage import Context


class RL(PolicyRewards):
    """advantage, drop_zero_variance, skip_truncated: see `credit.group.GroupCredit`."""

    group_size: int = Field(default=8, ge=2)
    advantage: AdvantageKind = "group_std"
    drop_zero_variance: bool = True
    skip_truncated: bool = False

    def assign(self, ctx: Context) -> Assigned:
        return Assigned(GroupCredit(self.advantage, self.kl_coef, self.drop_zero_variance, self.skip_truncated))
