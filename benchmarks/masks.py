"""Holes and clouds beside a training step: are they nearly free?"""

import argparse
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ganlab import clouds, masks, randomness
from ganlab.config import HoleKind, HolesConfig
from ganlab.networks.patchgan import PatchGAN
from ganlab.networks.unet import UNet

BATCH = 8


def milliseconds(step: Callable[[], object], device: str, rounds: int) -> float:
    """The fastest of several rounds, since neighbours disturb the others."""
    spent = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - begin) * 1000)
    return min(spent[1:])  # the first one warms up


def training_step(size: int, device: str) -> Callable[[], None]:
    """Generator and discriminator of a small pix2pix, each updated once."""
    image = torch.randn(BATCH, 3, size, size, device=device)
    generator = UNet(3, 3, width=16, depth=6).to(device)
    discriminator = PatchGAN(6, width=16, layers=2).to(device)
    first, second = (
        torch.optim.Adam(network.parameters(), 2e-4) for network in (generator, discriminator)
    )

    def step() -> None:
        made = generator(image)
        real = discriminator(image, image)[0][0]
        fake = discriminator(image, made.detach())[0][0]
        second.zero_grad()
        (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
        second.step()
        first.zero_grad()
        fake = discriminator(image, made)[0][0]
        (F.softplus(-fake).mean() + 100 * F.l1_loss(made, image)).backward()
        first.step()

    return step


def makers(size: int, device: str) -> dict[str, Callable[[], object]]:
    """What makes a batch of each kind."""
    keys = torch.from_numpy(randomness.keys(0, 0, np.arange(BATCH))).to(device)
    place = torch.arange(size, device=device) % 32 < 12
    buildings: Tensor = (place[:, None] & place).float().expand(BATCH, 1, -1, -1)
    bank = masks.Bank([masks.cloudlike(keys[:1], 1024, 1024, 0.3)[0, 0].cpu() > 0.5])

    def hole(kinds: tuple[HoleKind, ...]) -> Callable[[], object]:
        config = HolesConfig(kinds=kinds)
        return lambda: masks.draw(config, keys, size, size, buildings=buildings, bank=bank)

    made: dict[str, Callable[[], object]] = {kind: hole((kind,)) for kind in get_args(HoleKind)}
    made[" + ".join(HolesConfig().kinds)] = hole(HolesConfig().kinds)
    made["clouds and shadows"] = lambda: clouds.clouds(keys, size, size)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    table: dict[str, str] = {}
    for size in (64, 128, 256):
        step = milliseconds(training_step(size, options.device), options.device, options.rounds)
        row = "one training step"
        table[row] = table.get(row, "") + f"{step:13.1f} ms{'':8}"
        for kind, make in makers(size, options.device).items():
            spent = milliseconds(make, options.device, options.rounds)
            table[kind] = table.get(kind, "") + f"{spent:13.1f} ms{spent / step:7.1%} "
    print(f"{f'batch of {BATCH} on {options.device}':<26}{'64 px':>16}{'128 px':>24}{'256 px':>24}")
    for kind, line in table.items():
        print(f"{kind:<26}{line}")


if __name__ == "__main__":
    main()
