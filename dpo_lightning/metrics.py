"""Measures of pairs, lists and single answers, and a metric for their exact means over batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from dpo_lightning.types import PairLogps, PreferenceOutput, RankedOutput, UnpairedLogps, UnpairedOutput


def reward_margins(output: PreferenceOutput, logps: PairLogps) -> dict[str, Tensor]:
    """Rewards, their margins and the answers' log-probabilities, each `[pair]`, under TRL's names.

    `logps/margins` is the difference of the log-ratios in nats: unlike `rewards/margins` it does not scale with beta.
    """
    return {
        "rewards/chosen": output.chosen_rewards,
        "rewards/rejected": output.rejected_rewards,
        "rewards/margins": output.chosen_rewards - output.rejected_rewards,
        "logps/chosen": logps.policy_chosen,
        "logps/rejected": logps.policy_rejected,
        "logps/margins": logps.margins,
    }


def preference_accuracy(output: PreferenceOutput, logps: PairLogps) -> dict[str, Tensor]:
    """1 for each pair whose chosen answer wins, else 0: by reward, by likelihood of the policy, and of the reference.

    A tie is not a win, as in TRL; `rewards/ties` counts the ties.
    """
    wins = {
        "rewards/accuracies": output.chosen_rewards > output.rejected_rewards,
        "rewards/ties": output.chosen_rewards == output.rejected_rewards,
        "logps/accuracies": logps.policy_chosen > logps.policy_rejected,
        "logps/ref_accuracies": logps.reference_chosen > logps.reference_rejected,
    }
    return {name: won.float() for name, won in wins.items()}


def ranked_rewards(output: RankedOutput) -> dict[str, Tensor]:
    """Rewards of the first and the last answer, and the share of a list's pairs that are in order, each `[list]`.

    A tie is not in order; `rewards/ties` is the share of ties. For lists of two the values equal those of pairs.
    """
    rewards, mask = output.rewards, output.mask
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1, device=rewards.device)
    valid = mask[:, second]  # padding is at the end of a list, so that `first` is valid as well
    pairs = valid.sum(1)
    ahead = ((rewards[:, first] > rewards[:, second]) & valid).sum(1)
    tied = ((rewards[:, first] == rewards[:, second]) & valid).sum(1)
    return {
        "rewards/best": output.best,
        "rewards/worst": output.worst,
        "rewards/margins": output.margins,
        "rewards/accuracies": ahead / pairs,
        "rewards/ties": tied / pairs,
    }


def unpaired_rewards(output: UnpairedOutput, logps: UnpairedLogps) -> dict[str, Tensor]:
    """Values of single answers `[answer]` under TRL's names; those of `chosen` hold for the good answers only."""
    kl = torch.zeros_like(output.losses) if logps.kl is None else logps.kl.clamp(min=0).expand_as(output.losses)
    kinds = {
        f"{name}/{kind}": value
        for name, value in (("rewards", output.rewards), ("logps", logps.policy))
        for kind in ("chosen", "rejected")
    }
    return {"loss": output.losses, "kl": kl, "desirable": logps.good.float(), **kinds}


class Means(Metric):
    """Weighted means of named values, exact for batches and ranks of any size: it stores sums and weights."""

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        """Start without values, for these `names`."""
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weights", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weights: Tensor | Mapping[str, Tensor]) -> None:
        """Add values `[item]` under every name; an item of weight 0 is ignored, even where its value is NaN.

        Args:
            values: a tensor for each name.
            weights: of the items; a tensor for each name where they differ by name.
        """
        table = torch.stack([values[name] for name in self.names]).to(self.sums)
        each = [weights if isinstance(weights, Tensor) else weights[name] for name in self.names]
        counted = torch.stack([own.to(self.sums) for own in each])
        self.sums += torch.where(counted > 0, table * counted, 0).sum(dim=1)
        self.weights += counted.sum(dim=1)

    def restore(self, sums: Tensor, weights: Tensor) -> None:
        """Set the sums and weights, each `[name]`, to those of another metric of the same names."""
        self.reset()
        self.sums += sums.to(self.sums)
        self.weights += weights.to(self.weights)
        self._update_count = int(bool(weights.any()))  # what was not updated is not computed

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each name, on the CPU; names whose weights sum to 0 are left out."""
        table = torch.stack([self.sums, self.weights]).cpu()  # one copy, for which the host waits once
        rows = zip(self.names, *table, strict=True)
        return {name: (total / weight).float() for name, total, weight in rows if weight > 0}
