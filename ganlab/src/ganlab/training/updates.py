"""How the weights of the players move: Adam, its rates, 16-bit gradients, and what went wrong."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ganlab.config import TrainingConfig
from ganlab.losses.balance import schedule
from ganlab.training.processes import average_gradients

NEVER = 2**62


class Updates:
    """One optimizer for each player, one scaler of gradients for all.

    Args:
        players: the networks that are trained, by name.
        config: learning rates, schedule, betas and precision.
        device: where they are.
        processes: how many train together.
    """

    def __init__(
        self,
        players: Mapping[str, nn.Module],
        config: TrainingConfig,
        device: torch.device,
        processes: int,
    ) -> None:
        self.players, self.config, self.processes = players, config, processes
        self.rates = {"generator": config.generator_lr, "discriminator": config.discriminator_lr}
        self.optimizers = {
            name: torch.optim.Adam(p.parameters(), betas=config.betas, fused=device.type == "cuda")
            for name, p in players.items()
        }
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._bad = torch.tensor(NEVER, device=device)

    def begin(self, step: int) -> None:
        """Set the learning rates of a step."""
        factor = schedule(self.config.lr_schedule, step, self.config.steps)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * factor

    def move(self, player: str, total: Tensor, step: int) -> Tensor:
        """Take one step down a loss; gives the norm of its gradient without waiting for it.

        In fp16 the norm is 0 where it was infinite: then the scaler passes over the step.
        """
        optimizer, weights = self.optimizers[player], self.players[player].parameters()
        optimizer.zero_grad()
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        average_gradients(self.players[player].parameters(), self.processes)
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if self.scaler.is_enabled():
            norm = torch.where(norm.isfinite(), norm, 0)
        self.scaler.step(optimizer)
        self.scaler.update()
        finite = total.detach().isfinite() & norm.isfinite()
        here = torch.full_like(self._bad, step)  # a copy from the host could wait
        self._bad = torch.where(finite, self._bad, self._bad.minimum(here))
        return norm

    def first_bad(self) -> int | None:
        """The first step, in any process, whose loss or gradient was not finite; waits for it."""
        bad = int(-reduce(-self._bad, "max")) if self.processes > 1 else int(self._bad)
        return None if bad == NEVER else bad

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        each = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"optimizers": each, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``."""
        for name, optimizer in self.optimizers.items():
            saved = state["optimizers"][name]
            # On another device, Adam is computed in another way.
            fused = optimizer.param_groups[0]["fused"]
            groups = [{**group, "fused": fused} for group in saved["param_groups"]]
            own = [group.keys() for group in optimizer.param_groups]
            if [group.keys() for group in groups] != own:
                raise ValueError(f"the optimizer of the {name} is another")
            optimizer.load_state_dict({**saved, "param_groups": groups})
            # Checkpoints are contiguous; a fused step needs moments laid out like their weights.
            for weight, moments in optimizer.state.items():
                for key, value in moments.items():
                    if key != "step":
                        moments[key] = torch.empty_like(weight).detach().copy_(value)
        if state["scaler"]:  # there is none unless it was trained in fp16
            self.scaler.load_state_dict(state["scaler"])
