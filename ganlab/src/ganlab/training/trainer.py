"""The training loop: one for every task."""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ganlab.config import TrainingConfig
from ganlab.data.batches import Batch, Batches
from ganlab.errors import TrainingFailed
from ganlab.losses.adversarial import Heads, Penalty, Verdict, full
from ganlab.losses.balance import Balance, Terms, Weights, choose, gradient_norms
from ganlab.randomness import derived_seed
from ganlab.stabilize.choice import Stabilizers, prepare
from ganlab.tasks.base import Task
from ganlab.training import checkpoints
from ganlab.training.processes import autocast, interruptible, this_process
from ganlab.training.records import Meter
from ganlab.training.updates import Updates

OnLog = Callable[[int, dict[str, float]], None]


class Trainer:
    """Alternates the players of any task.

    Args:
        task: networks and losses; moved to ``device``.
        batches: what it learns from.
        config: see :class:`ganlab.config.TrainingConfig`; ``precision`` must be decided.
        folder: the run directory for checkpoints.
        device: where to train.
        balances: in place of the task's own, for (generator, discriminator).
        penalties: further terms for the discriminator, beside those of the configuration; each is
            scaled by ``every * weight``.
        on_log: called with (step, metrics) every ``log_every`` steps.
        on_sample: called with (step, averaged or plain generator) every ``sample_every`` steps.
    """

    def __init__(
        self,
        task: Task,
        batches: Batches,
        config: TrainingConfig,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        balances: tuple[Balance, Balance | None] | None = None,
        penalties: Sequence[Penalty] = (),
        on_log: OnLog | None = None,
        on_sample: Callable[[int, nn.Module], None] | None = None,
    ) -> None:
        self.state, self.device = this_process(), torch.device(device)
        prepare(config.stabilizers, task.discriminator)
        on_cuda = self.device.type == "cuda"
        layout = torch.channels_last if on_cuda else torch.contiguous_format
        self.task = task.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.batches, self.config, self.folder = batches, config, folder
        self.on_log, self.on_sample = on_log, on_sample
        self.players: dict[str, nn.Module] = {"generator": task.generator}
        if task.discriminator is not None:
            self.players["discriminator"] = task.discriminator
        self.updates = Updates(self.players, config, self.device, self.state.num_processes)
        self.optimizers, self.scaler = self.updates.optimizers, self.updates.scaler
        self.balances = balances or self._balances(task)
        self.balances[0].reduce, self.balances[0].scale = self._mean, self.scaler.scale
        self.stabilizers = Stabilizers(
            config.stabilizers,
            task.generator,
            task.discriminator,
            steps=config.steps,
            processes=self.state.num_processes,
        )
        self.penalties = [*self.stabilizers.penalties, *penalties]
        if self.stabilizers.gate is not None:
            self.stabilizers.gate.reduce = self._mean
        self.ema = AveragedModel(task.generator, multi_avg_fn=self._ema) if config.ema else None
        if config.compile:
            for player in self.players.values():
                player.compile()
        self.step = 0
        self._meter = Meter(self.device)

    def _balances(self, task: Task) -> tuple[Balance, Balance | None]:
        """The task's weights, weighed anew as the configuration asks."""
        fixed, other = task.balances(self.config.steps)
        noises, values = task.likelihoods, task.values_judged
        return choose(self.config.balance, fixed, noises, values, self.config.steps), other

    def _mean(self, value: Tensor) -> Tensor:
        """Over processes."""
        return value if self.state.num_processes == 1 else reduce(value, "mean")

    def fit(self) -> int:
        """Train to ``config.steps`` or until Ctrl-C, then save; returns the step reached."""
        every = self.config
        with interruptible() as interrupted:
            for batch in self.batches.stream(self.step, every.steps, every.workers):
                self.train_step(batch)
                if self.step % every.log_every == 0:
                    values = self._meter.means()
                    self._stop_if_bad()
                    if self.on_log:
                        self.on_log(self.step, values)
                if self.on_sample and every.sample_every and self.step % every.sample_every == 0:
                    self.on_sample(self.step, self.averaged)
                if self.step % every.checkpoint_every == 0:
                    self.save()
                if self._agree(interrupted):
                    break
        if self.step % every.checkpoint_every:
            self.save()
        return self.step

    @property
    def averaged(self) -> nn.Module:
        """The averaged generator if there is one, otherwise the generator."""
        return self.task.generator if self.ema is None else self.ema.module

    def train_step(self, batch: Batch) -> None:
        """One update of each player; nothing in it waits for the device."""
        config, task = self.config, self.task
        torch.manual_seed(derived_seed(config.seed, self.step, self.state.process_index, "step"))
        task.train()
        self.updates.begin(self.step)
        batch = task.prepare(batch)
        plays, judges = self.stabilizers.open(self.step)
        with autocast(self.device, config.precision), torch.set_grad_enabled(plays):
            out = {name: full(value) for name, value in task.generate(batch).items()}
        if task.discriminator is not None:
            said = self._update_discriminator(task.discriminator, batch, out, judges)
            task.discriminator.requires_grad_(False)
        with torch.set_grad_enabled(plays):
            terms = task.generator_losses(batch, out, self.verdict(batch, out))
        if plays:
            total, weights = self.balances[0](terms, task.last_layer, self.step)
            # The first of the generator's steps from there on: a critic takes the others.
            due = config.gradients_every and self.step % config.gradients_every
            if config.gradients_every and due < config.stabilizers.critic:
                weighted = {f"generator/gradient/{n}": weights[n] * t for n, t in terms.items()}
                layer, scale = task.last_layer, self.scaler.scale
                self._meter.add(gradient_norms(weighted, layer, self._mean, scale))
            self._update("generator", total, terms, weights)
            if self.ema is not None:
                self.ema.update_parameters(task.generator)
        else:
            self._meter.add({f"generator/{name}": term for name, term in terms.items()})
        if task.discriminator is not None:
            task.discriminator.requires_grad_(True)
            self._meter.add(self.stabilizers.observe(terms, *said, plays, judges))
        self.step += 1

    def _update_discriminator(
        self, discriminator: nn.Module, batch: Batch, out: dict[str, Tensor], judges: bool
    ) -> tuple[Terms, Tensor | None]:
        """Its terms and its accuracy; a discriminator that rests is only asked."""
        out = {name: value.detach() for name, value in out.items()}
        verdict, balance = self.verdict(batch, out, learns=judges), self.balances[1]
        if verdict is None or balance is None:
            raise TypeError(f"{type(self.task).__name__}: a discriminator needs a balance")
        with torch.set_grad_enabled(judges):
            terms = self.task.discriminator_losses(batch, out, verdict)
        if not judges:
            self._meter.add({f"discriminator/{name}": term for name, term in terms.items()})
            return terms, verdict.accuracy
        total, weights = balance(terms, None, self.step)
        extra: dict[str, Tensor] = {}
        for penalty in self.penalties:
            if self.stabilizers.judged % penalty.every == 0:
                # forward, not the compiled call: compiled graphs have no double backward.
                extra[penalty.name] = penalty(discriminator.forward, *verdict.seen[:3])
                total = total + penalty.every * penalty.weight * extra[penalty.name]
        self._update("discriminator", total, {**terms, **extra}, weights)
        return terms, verdict.accuracy

    def verdict(self, batch: Batch, out: dict[str, Tensor], learns: bool = False) -> Any:
        """What the discriminator is asked about a prepared batch; None without one."""
        discriminator = self.task.discriminator
        if discriminator is None:
            return None

        def judge(condition: Tensor | None, image: Tensor) -> Heads:
            with autocast(self.device, self.config.precision):
                heads: Heads = discriminator(condition, image)
            return heads

        seen = (*self.task.judged(batch, out), batch["valid"])
        seen = self.stabilizers.shown(seen, self.step, learns)
        return Verdict(judge, *seen, doubt=self.config.stabilizers.smoothing)

    def _update(self, player: str, total: Tensor, terms: Terms, weights: Weights) -> None:
        parts = dict(terms)
        for regularizer in self.stabilizers.regularizers[player]:
            parts[regularizer.name] = regularizer()
            total = total + regularizer.weight * parts[regularizer.name]
        norm = self.updates.move(player, total, self.step)
        self.stabilizers.updated(player)
        self._meter.add({f"{player}/{name}": term for name, term in parts.items()})
        self._meter.add({f"{player}/total": total, f"{player}/norm": norm})
        self._meter.add({f"{player}/weight/{name}": weight for name, weight in weights.items()})

    def _ema(self, averages: Any, values: Any, _: Any) -> None:
        # Young averages follow faster, so that the random start is forgotten in time.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, values, 1 - decay)

    def _stop_if_bad(self, state: dict[str, Any] | None = None) -> None:
        """Raise if a loss, a weight, a buffer or an average is not finite.

        Args:
            state: what is about to be saved; the moments in it are looked at, too.
        """
        found = self.updates.first_bad()
        if found is None and self._is_finite(state):
            return
        bad = self.step - 1 if found is None else found
        batch = self._save_failed_batch(bad)
        self.state.wait_for_everyone()
        where = "could not be saved" if batch is None else f"is in {self.folder / batch}"
        raise TrainingFailed(
            f"a loss or weight became infinite or NaN at step {bad}; its batch {where}, "
            f"{self._last_good()}; try a lower learning rate, or bf16 instead of fp16",
            bad,
            batch,
        )

    def _is_finite(self, state: dict[str, Any] | None) -> bool:
        """In all processes, whose buffers may differ."""
        modules = list(self.players.values())
        if self.ema is not None:
            modules.append(self.ema)
        finite = all(map(checkpoints.finite, modules))
        if state is not None:
            finite = finite and checkpoints.all_finite(checkpoints.tensors_in(state["optimizers"]))
        return float(self._mean(torch.tensor(float(finite), device=self.device))) == 1

    def _save_failed_batch(self, step: int) -> str | None:
        """The name of the file in the run directory; None if it could not be written."""
        name = f"failed-step-{step:08d}.safetensors"
        if not self.state.is_main_process:
            return name
        whole = copy.copy(self.batches)
        whole.rank, whole.world = 0, 1
        try:
            checkpoints.write_tensors(self.folder / name, whole[step], {})
        except OSError as error:
            warnings.warn(f"{self.folder / name} cannot be written: {error}", stacklevel=2)
            return None
        return name

    def _last_good(self) -> str:
        saved = checkpoints.all_in(self.folder / "checkpoints")
        if not saved:
            return "no checkpoint had been saved yet"
        return f"the last good checkpoint is kept ({saved[-1].name})"

    def _agree(self, interrupted: list[int]) -> bool:
        if self.state.num_processes == 1:
            return bool(interrupted)
        if self.step % self.config.log_every:
            return False
        votes = torch.tensor(float(len(interrupted)), device=self.device)
        return bool(reduce(votes, "sum") > 0)

    def save(self) -> None:
        """Write a checkpoint, unless the run has gone bad; the last ``keep`` stay."""
        state, folder = self.state_dict(), self.folder / "checkpoints"
        self._stop_if_bad(state)
        if self.state.is_main_process:
            checkpoints.save(folder / checkpoints.name(self.step), state)
            checkpoints.tidy(folder, self.config.keep)
        self.state.wait_for_everyone()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; to be called by all processes together."""
        return {
            "step": self.step,
            "players": {name: player.state_dict() for name, player in self.players.items()},
            **self.updates.state_dict(),
            "balances": [balance and balance.state_dict() for balance in self.balances],
            "stabilizers": self.stabilizers.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "meter": self._meter.totals(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self.step = state["step"]
        for name, player in self.players.items():
            player.load_state_dict(state["players"][name])
        for balance, values in zip(self.balances, state["balances"], strict=True):
            if balance is not None:
                balance.load_state_dict(values)
        self.stabilizers.judged = self.step  # in older checkpoints, of which the oldest know less
        if "stabilizers" in state:
            self.stabilizers.load_state_dict(state["stabilizers"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.updates.load_state_dict(state)
        own = self.state.is_main_process  # the sums are those of all processes
        self._meter.sums = {name: pair * own for name, pair in state["meter"].items()}
