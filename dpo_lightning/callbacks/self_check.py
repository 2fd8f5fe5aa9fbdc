"""`SelfCheck`: at the first batch of a fresh run, what has to hold is looked at before time is spent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.types import IGNORE, PairLogps, PreferenceBatch, PreferenceOutput

LOSS_TOLERANCE = 1e-6


class SelfCheck(Callback):
    """Starting loss and margins, BOS, EOS, prompts and scored tokens of the first batch.

    A live reference runs in the policy's batch, layout and kernels, so the two agree exactly, in bf16 as well.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Switch the check on or off.

        Args:
            enabled: False leaves it out.
        """
        self.enabled = enabled
        self._done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell where the check does not apply."""
        resumed = trainer.global_step > 0 or trainer.ckpt_path is not None
        if not self.enabled or resumed:
            say(f"self-check: left out ({'the run goes on' if resumed else 'switched off'})")
            self._done = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the first batch, whose numbers were computed before the first optimizer step."""
        if self._done:
            return
        self._done = True
        rows = getattr(getattr(trainer, "datamodule", None), "encoded", {}).get("train")
        problems = list(self.check_tokens(batch, pl_module, rows))
        if problems:
            raise UserError(
                ExitCode.DATA, problems, fix="mend the chat template (--data.chat_template FILE) or the rows"
            )
        if not pl_module.reference.starts_equal:
            say("self-check: tokens are sound; the starting loss is left out (another model is the reference)")
            return
        problems = list(self.check_start(outputs["preference"], outputs["logps"], pl_module.loss))
        if problems:
            raise UserError(
                ExitCode.MODEL,
                problems,
                fix="policy and reference must be one function at the start: look for dropout, noise or state in the "
                "model's forward pass, or a reference in another precision",
            )
        start = float(outputs["preference"].losses.mean())
        say(f"self-check: passed (starting loss {start:.6f}, margins 0, tokens sound)")

    @staticmethod
    def check_start(output: PreferenceOutput, logps: PairLogps, loss: Any) -> Iterator[Problem]:
        """The loss has its own starting value, and rewards are 0."""
        equal = loss(logps._replace(reference_chosen=logps.policy_chosen, reference_rejected=logps.policy_rejected))
        off = float((output.losses - equal.losses).abs().max())
        if not off <= LOSS_TOLERANCE * max(1.0, float(equal.losses.abs().max())):
            yield Problem(
                f"the starting loss is {float(output.losses.mean()):.6f}, equal log-probabilities give "
                f"{float(equal.losses.mean()):.6f}",
                "self-check",
            )
        margin = float((output.chosen_rewards - output.rejected_rewards).abs().max())
        if margin != 0:  # NaN as well
            yield Problem(f"a margin is {margin:.3g} before the first step and not 0", "self-check")

    @staticmethod
    def check_tokens(batch: PreferenceBatch, module: Any, rows: Any) -> Iterator[Problem]:
        """Every sequence of a padded batch: BOS, prompt, scored tokens and EOS."""
        stops = module.end_ids | {module.tokenizer.eos_token_id}
        bos = module.tokenizer.bos_token_id
        pairs = len(batch.indices)
        ids, targets, mask = batch.input_ids.tolist(), batch.targets.tolist(), batch.mask.tolist()
        prompts = []
        for row in range(batch.num_sequences):
            index = int(batch.indices[row % pairs])
            known = rows is not None and index >= 0
            where = str(rows[index].origin) if known else f"row {index}"
            cut = known and rows[index].answers[row // pairs].cut
            real = [id_ for id_, own in zip(ids[row], mask[row], strict=True) if own]
            goal = [id_ for id_, own in zip(targets[row], mask[row], strict=True) if own]
            if bos is not None and real[:2] == [bos, bos]:
                yield Problem("the text begins with two BOS tokens", where)
            runs = scored_runs(goal)
            if not runs:
                yield Problem("an answer has no scored token", where)
                continue
            prompts.append(real[: runs[0].start + 1])
            for run in runs[: len(runs) - cut]:
                ends = [id_ in stops for id_ in goal[run]]
                if not ends[-1] or sum(ends) != 1:
                    yield Problem(f"an answer scores EOS {sum(ends)} times, or not at its end", where)
        if len(prompts) == batch.num_sequences and prompts[:pairs] != prompts[pairs:]:
            yield Problem("chosen and rejected follow different prompt tokens", "self-check")


def scored_runs(targets: list[int]) -> list[slice]:
    """Stretches of neighbouring scored positions: one for each of the assistant's turns."""
    runs: list[slice] = []
    start = None
    for i, target in enumerate([*targets, IGNORE]):
        if target != IGNORE and start is None:
            start = i
        elif target == IGNORE and start is not None:
            runs.append(slice(start, i))
            start = None
    return runs
