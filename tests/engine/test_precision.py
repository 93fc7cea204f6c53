"""Sixteen bits and compilation."""

import pytest
import torch

from ganlab.config import PatchGANConfig, UNetConfig
from ganlab.losses import adversarial
from ganlab.tasks.pix2pix import Pix2Pix
from ganlab.training.runs import decide_precision


class Watched(Pix2Pix):
    """pix2pix that notes which types of numbers meet where."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.seen, self.calls = {}, []
        game = self._game

        def watch(name, function):
            def watched(real, fake):
                value = function(real, fake)
                self.seen[name] = (fake.dtype, value.dtype, torch.is_autocast_enabled("cpu"))
                return value

            return watched

        self._game = adversarial.AdversarialLoss(
            watch("discriminator", game.discriminator), watch("generator", game.generator)
        )
        self.generator.last_layer.register_forward_hook(
            lambda module, inputs, output: self.seen.update(layer=output.dtype)
        )
        self.discriminator.head.register_forward_hook(
            lambda module, inputs, output: self.calls.append(output.dtype)
        )

    def generator_losses(self, batch, out, verdict):
        self.seen["made"] = out["image"].dtype
        return super().generator_losses(batch, out, verdict)


class Slope:
    """R1, which notes the types it gets."""

    name, every, weight, types = "r1", 2, 1.0, ()

    def __call__(self, discriminator, condition, real, fake):
        real = real.detach().requires_grad_()
        logits = discriminator(condition, real)[0][0]
        self.types = (real.dtype, fake.dtype, logits.dtype)
        (slope,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), real, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()


SIXTEEN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", SIXTEEN)
def test_networks_run_in_it_and_losses_in_float32(make_trainer, quick, tiny, precision):
    slope = Slope()
    trainer = make_trainer(
        lambda spec: Watched(tiny(), spec), quick(precision=precision, steps=2), penalties=[slope]
    )
    trainer.fit()
    seen, low, full = trainer.task.seen, SIXTEEN[precision], torch.float32
    assert seen["layer"] == low
    # Of real and made, the penalty in the first step, and of made again for the generator.
    assert trainer.task.calls == [low, low, full, low, low, low, low]
    assert seen["made"] == full
    assert seen["discriminator"] == seen["generator"] == (full, full, False)
    assert slope.types == (full, full, full)
    assert {p.dtype for p in trainer.task.parameters()} == {full}
    assert {p.dtype for p in trainer.averaged.parameters()} == {full}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_learns_like_float32(make_trainer, quick, tiny, precision):
    def lines(precision):
        config = quick(steps=30, log_every=5, generator_lr=2e-3, precision=precision)
        shape = tiny(generator=UNetConfig(width=4, depth=3, dropout=0.0))
        trainer = make_trainer(lambda spec: Pix2Pix(shape, spec), config)
        if precision == "fp16":
            start = {**trainer.scaler.state_dict(), "scale": 64.0}  # passes over no first steps
            trainer.scaler.load_state_dict(start)
        trainer.fit()
        return [line["generator/l1"] for line in trainer.lines]

    exact, rounded = lines("fp32"), lines(precision)
    assert rounded[-1] < 0.8 * rounded[0]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_fp16_scales_its_gradients_and_passes_over_infinite_ones(make_trainer, quick, tiny):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(precision="fp16", steps=3))
    assert trainer.scaler.is_enabled()
    before = trainer.scaler.get_scale()
    trainer.train_step(trainer.batches[0])
    weights = [p.clone() for p in trainer.task.parameters()]
    trainer.scaler.update(1e38)  # the next gradients are infinite
    trainer.train_step(trainer.batches[1])
    assert all(map(torch.equal, weights, trainer.task.parameters()))
    trainer.scaler.update(before)
    trainer.train_step(trainer.batches[2])
    assert not all(map(torch.equal, weights, trainer.task.parameters()))
    trainer.save()  # nothing of it counts as a failure
    other = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(precision="fp16"))
    other.load_state_dict(trainer.state_dict())
    assert other.scaler.get_scale() == trainer.scaler.get_scale() < before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_do_not_scale(make_trainer, quick, tiny, precision):
    trainer = make_trainer(lambda spec: Pix2Pix(tiny(), spec), quick(precision=precision))
    assert not trainer.scaler.is_enabled()


def test_what_auto_means(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert decide_precision("auto", cpu) == "fp32"
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert decide_precision("auto", cuda) == expected
        assert decide_precision("fp32", cuda) == "fp32"


def test_compiled_networks_give_the_same_numbers(make_trainer, quick, tiny, monkeypatch):
    # Traced and differentiated as always; only the C++ compiler, which takes a minute, stays out.
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compile_(m, backend="aot_eager"))
    shape = tiny(
        generator=UNetConfig(width=1, depth=1, norm="none"),
        discriminator=PatchGANConfig(width=1, layers=1, norm="none"),
    )

    def run(compiled):
        config = quick(steps=3, compile=compiled)
        trainer = make_trainer(lambda spec: Pix2Pix(shape, spec), config, penalties=[Slope()])
        trainer.fit()
        return trainer

    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, compiled = run(False), run(True)
    assert counters["stats"]["unique_graphs"] >= 2
    for one, other in zip(eager.lines, compiled.lines, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    states = [trainer.state_dict()["players"] for trainer in (eager, compiled)]
    for player in ("generator", "discriminator"):
        assert states[0][player].keys() == states[1][player].keys()
