"""What goes on around a training: other processes that share it, and signals that end it."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import nn


def this_process() -> PartialState:
    """This process among those that train together: over NCCL on GPUs, over gloo elsewhere."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return PartialState(cpu=on_cpu)


def average_gradients(parameters: Iterable[nn.Parameter], processes: int) -> None:
    """Replace the gradients by their means over all processes, in one reduction.

    Called once for each player, after the one backward pass of all its terms, so that penalties
    and several passes through a discriminator need no special care.
    """
    if processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context of a decided precision; fp32 switches it off."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, so that a step can be finished and saved.

    The list that it gives fills with the first signal; a second one raises KeyboardInterrupt.
    Outside the main thread, where signals cannot be caught, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
