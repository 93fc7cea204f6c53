"""Memory of earlier steps: a history of samples, and the mean of past weights."""

from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import InputError

Sample = tuple[Tensor | None, Tensor, Tensor, Tensor]


class Replay:
    """A discriminator that also judges the past does not forget it (Shrivastava et al. 2017, 2.3).

    Half of each batch comes from a history of earlier samples. A sample is remembered whole, since
    a condition belongs to its made image, and a relativistic game pairs that with the true one.
    Until the history is full all samples go into it; from then on those that gave way in the batch
    take the places of those that came out. Choices follow torch's generator of the device; nothing
    waits for it.

    Args:
        capacity: samples that are remembered, in each process; at least a batch. They stay on the
            device: 50 of 256 x 256 with 3 + 3 + 3 + 1 channels are 131 MB in float32.

    Raises:
        InputError: the capacity is not positive.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InputError(f"a history of {capacity} samples is empty; give a batch or more")
        self.capacity = capacity
        self._filled, self._calls = 0, 0
        self._held: dict[str, Tensor] = {}

    def __call__(
        self, condition: Tensor | None, real: Tensor, fake: Tensor, valid: Tensor
    ) -> Sample:
        """Exchange the first half of a batch for samples of the past, drawn without repetition.

        Args:
            condition: ``(B, C, H, W)`` what the image was made from, or None.
            real: ``(B, C, H, W)`` true images.
            fake: ``(B, C, H, W)`` made images.
            valid: ``(B, 1, H, W)``, 1 = measured.

        Returns:
            The four without graph: ``B // 2`` samples of the past (fewer only if fewer are held)
            and the last ones of the batch; the first batch returns as it is. A batch of one is
            exchanged at every second call.

        Raises:
            InputError: the batch is larger than the capacity, or its samples have other parts or
                another size than those remembered.
        """
        parts = {"condition": condition, "real": real, "fake": fake, "valid": valid}
        batch = {name: part.detach() for name, part in parts.items() if part is not None}
        size = len(fake)
        self._make_room(batch, size)
        old = min(size // 2 if size > 1 else self._calls % 2, self._filled)
        rows = torch.randperm(self._filled, device=fake.device)[:old]
        mixed = {
            name: torch.cat([self._held[name].index_select(0, rows), part[old:]])
            for name, part in batch.items()
        }
        free = min(size, self.capacity - self._filled)
        for name, part in batch.items():
            if self._filled < self.capacity:
                self._held[name][self._filled : self._filled + free] = part[:free]
            else:
                self._held[name].index_copy_(0, rows, part[:old])
        self._filled, self._calls = self._filled + free, self._calls + 1
        return mixed.get("condition"), mixed["real"], mixed["fake"], mixed["valid"]

    def _make_room(self, batch: dict[str, Tensor], size: int) -> None:
        if size > self.capacity:
            raise InputError(
                f"a history of {self.capacity} samples is smaller than a batch of {size}; give at "
                f"least {size}"
            )
        if not self._held:
            self._held = {
                name: part.new_empty(self.capacity, *part.shape[1:]) for name, part in batch.items()
            }
        found, held = (
            {name: tuple(part.shape[1:]) for name, part in parts.items()}
            for parts in (batch, self._held)
        )
        if found != held:
            raise InputError(f"the history holds samples of {held}, found {found}; start a new one")
        # Out of a checkpoint they come on the CPU.
        self._held = {name: part.to(batch[name]) for name, part in self._held.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the samples of this process and two counts."""
        held = {name: part[: self._filled].clone() for name, part in self._held.items()}
        return {"filled": self._filled, "calls": self._calls, "held": held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``; it may lie on another device.

        Raises:
            InputError: it holds more samples than the capacity.
        """
        if state["filled"] > self.capacity:
            raise InputError(
                f"a history of {state['filled']} samples does not fit into {self.capacity}; give a "
                f"capacity of at least {state['filled']}"
            )
        self._filled, self._calls, self._held = state["filled"], state["calls"], {}
        for name, part in state["held"].items():
            self._held[name] = part.new_empty(self.capacity, *part.shape[1:])
            self._held[name][: self._filled] = part


class HistoricalAverage:
    """Squared distance of a network's weights from their past mean (Salimans et al. 2016, 3.2).

    ``||theta - (1/t) sum_i theta_i||**2``, summed over all parameters: players that circle around
    an equilibrium are drawn to the middle of their orbit.

    Args:
        network: whose weights; asked for its parameters anew each time.
        weight: of the term.

    Raises:
        InputError: the weight is negative.

    Attributes:
        name: of the term, in logs.
        weight: as given.
    """

    name = "history"

    def __init__(self, network: nn.Module, weight: float) -> None:
        if weight < 0:
            raise InputError(f"weight {weight} of the history drives weights apart; give 0 or more")
        self.network, self.weight = network, weight
        self._count = 0
        self._means: list[Tensor] = []

    def __call__(self) -> Tensor:
        """The unweighted term, a scalar; 0 with gradient 0 before the first update."""
        now: list[Tensor] = [*self.network.parameters()]
        means = self._means or [p.detach() for p in now]
        apart = torch._foreach_sub(now, means)
        return torch.stack([distance.square().sum() for distance in apart]).sum()

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights into their mean; after each step of the network's optimizer."""
        now: list[Tensor] = [*self.network.parameters()]
        self._count += 1
        if self._means:
            torch._foreach_lerp_(self._means, now, 1 / self._count)
        else:
            self._means = [p.detach().clone() for p in now]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the means and their count."""
        return {"count": self._count, "means": [mean.clone() for mean in self._means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state given by ``state_dict``; it may lie on another device.

        Raises:
            InputError: it is that of another network.
        """
        now, means = [*self.network.parameters()], state["means"]
        if means and [p.shape for p in now] != [mean.shape for mean in means]:
            raise InputError("the means of past weights belong to another network; start anew")
        self._count = state["count"]
        self._means = [
            torch.empty_like(p).detach().copy_(mean) for p, mean in zip(now, means, strict=False)
        ]
