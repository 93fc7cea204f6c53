"""Other tasks than pix2pix go through the Trainer without a line of it changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganlab.losses.adversarial import LOSSES, AdversarialLoss
from ganlab.losses.balance import FixedBalance
from ganlab.losses.reconstruction import l2
from ganlab.randomness import derived_seed
from ganlab.tasks.base import Task, field

SMALL = 8
"""Width and height of the toys' images: tiles are shrunk in ``prepare``."""


class Toy(Task):
    """What the toys share: the image in float64, made from the label's one-hot channels."""

    config_type = object

    def __init__(self, spec):
        super().__init__(None, spec)
        self.inputs, self.outputs = (field(spec, "label"),), (field(spec, "image"),)
        self.calls = {"generator": 0, "discriminator": 0}

    def prepare(self, batch):
        image = F.avg_pool2d(batch["image"].double(), 2)
        label = self.inputs[0].enter(batch["label"])[..., ::2, ::2].double()
        valid = torch.ones_like(image[:, :1])
        return {"image": image, "label": label, "valid": valid, "sample": batch["sample"]}

    @property
    def last_layer(self):
        return None


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3 * SMALL * SMALL, 16)
        self.decode = nn.Linear(8, 3 * SMALL * SMALL)

    def forward(self, x):
        mean, log_variance = self.encode(x.flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decode(z).view_as(x), mean, log_variance


class ToyVAE(Toy):
    """Kingma and Welling (2014): no discriminator, nothing judged."""

    def __init__(self, spec):
        super().__init__(spec)
        self.generator = VAE().double()

    def generate(self, batch):
        self.calls["generator"] += 1
        made, mean, log_variance = self.generator(batch["image"])
        return {"image": made, "mean": mean, "log_variance": log_variance}

    def generator_losses(self, batch, out, verdict):
        assert verdict is None
        mean, log_variance = out["mean"], out["log_variance"]
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return {"l2": l2(out["image"], batch["image"], batch["valid"]).mean(), "kl": kl}

    def balances(self, steps):
        return FixedBalance({"l2": 1.0, "kl": 1e-3}), None


class Judge(nn.Module):
    """A small discriminator without statistics, which counts how often it is run."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.first, self.last = nn.Conv2d(6, 6, 4, 2, 1), nn.Conv2d(6, 1, 3, 1, 1)

    def forward(self, condition, image):
        self.calls["discriminator"] += 1
        hidden = torch.tanh(self.first(torch.cat([condition, image], 1)))
        return [(self.last(hidden), [hidden])]


class ToyGAN(Toy):
    """Label to image, judged together with the label."""

    game = LOSSES["vanilla"]
    weights = ({"adversarial": 1.0}, {"adversarial": 1.0})

    def __init__(self, spec):
        super().__init__(spec)
        self.generator = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 3, 1))
        self.generator = self.generator.double()
        self.discriminator = Judge(self.calls).double()

    def generate(self, batch):
        self.calls["generator"] += 1
        return {"image": self.generator(batch["label"])}

    def judged(self, batch, out):
        return batch["label"], batch["image"], out["image"]

    def generator_losses(self, batch, out, verdict):
        return {"adversarial": verdict.generator_term(self.game)}

    def discriminator_losses(self, batch, out, verdict):
        return {"adversarial": verdict.discriminator_term(self.game)}

    def balances(self, steps):
        return tuple(FixedBalance(weights) for weights in self.weights)


class ToyRelativistic(ToyGAN):
    """Jolicoeur-Martineau (2018): each side is judged against the other."""

    game = AdversarialLoss(
        lambda real, fake: F.softplus(-(real - fake)),
        lambda real, fake: F.softplus(-(fake - real)),
        relativistic=True,
    )


class R1:
    """Mescheder et al. (2018), eq. 9: the squared slope of the mean logit at real images."""

    name, every, weight = "r1", 4, 2.5

    def __init__(self):
        self.steps = 0

    def __call__(self, discriminator, condition, real, fake):
        self.steps += 1
        real = real.detach().requires_grad_()
        logits = discriminator(condition, real)[0][0]
        (slope,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), real, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean() / 2


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_close(got, expected, rtol=1e-9):
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.allclose(got[name], expected[name], rtol=rtol, atol=1e-14), name
    assert all(expected[name].abs().max() > 1e-8 for name in expected if "weight" in name)


class ByHand:
    """The same two-player step in plain PyTorch."""

    def __init__(self, task, config, r1=None, relativistic=False):
        self.task, self.config = copy.deepcopy(task), config
        self.g, self.d = self.task.generator, self.task.discriminator
        self.r1, self.relativistic = r1, relativistic
        self.adam_g = torch.optim.Adam(self.g.parameters(), config.generator_lr, config.betas)
        self.adam_d = torch.optim.Adam(self.d.parameters(), config.discriminator_lr, config.betas)

    def judge(self, image, label):
        return self.d(label, image)[0][0]

    def step(self, batch, step):
        batch = self.task.prepare(batch)
        label, real = batch["label"], batch["image"]
        fake = self.g(label)
        a, b = self.judge(real, label), self.judge(fake.detach(), label)
        if self.relativistic:
            loss = torch.log1p(torch.exp(b - a)).mean()
        else:
            loss = -(torch.sigmoid(a).log() + (1 - torch.sigmoid(b)).log()).mean()
        if self.r1 and step % self.r1.every == 0:
            x = real.clone().requires_grad_()
            # The mean over patches, one sample at a time.
            slopes = [
                torch.autograd.grad(
                    self.judge(x[i : i + 1], label[i : i + 1]).mean(), x, create_graph=True
                )[0][i]
                for i in range(len(x))
            ]
            penalty = sum(0.5 * (slope**2).sum() for slope in slopes) / len(x)
            loss = loss + self.r1.every * self.r1.weight * penalty
        self.adam_d.zero_grad()
        loss.backward()
        of_d = gradients(self.d)
        self.adam_d.step()
        a, b = self.judge(real, label), self.judge(fake, label)
        if self.relativistic:
            loss = torch.log1p(torch.exp(a - b)).mean()
        else:
            loss = -torch.sigmoid(b).log().mean()
        self.adam_g.zero_grad()
        loss.backward()
        of_g = gradients(self.g)
        self.adam_g.step()
        return of_g, of_d


def test_a_vae_trains_without_a_special_case(make_trainer, quick):
    trainer = make_trainer(ToyVAE, quick(steps=80, generator_lr=3e-3, log_every=10))
    trainer.fit()
    lines = trainer.lines
    assert set(lines[0]) == {
        "step",
        "generator/l2",
        "generator/kl",
        "generator/total",
        "generator/norm",
        "generator/weight/l2",
        "generator/weight/kl",
    }
    assert lines[-1]["generator/l2"] < 0.5 * lines[0]["generator/l2"]
    assert trainer.task.calls["generator"] == 80
    state = trainer.state_dict()
    assert list(state["players"]) == list(state["optimizers"]) == ["generator"]


def test_a_vae_step_is_the_step_by_hand(make_trainer, quick):
    trainer = make_trainer(ToyVAE, quick(steps=3))
    twin = copy.deepcopy(trainer.task)
    adam = torch.optim.Adam(twin.generator.parameters(), 2e-4, (0.5, 0.999))
    for step in range(3):
        batch = trainer.batches[step]
        trainer.train_step(batch)
        torch.manual_seed(derived_seed(0, step, 0, "step"))
        image = twin.prepare(batch)["image"]
        made, mean, log_variance = twin.generator(image)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, (log_variance / 2).exp()),
            torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
        )
        adam.zero_grad()
        ((made - image).square().mean() + 1e-3 * kl.sum(1).mean()).backward()
        assert_close(gradients(trainer.task.generator), gradients(twin.generator))
        adam.step()


@pytest.mark.parametrize(
    ("task", "penalties", "relativistic"),
    [
        (ToyGAN, 0, False),
        (ToyRelativistic, 0, True),
        (ToyGAN, 1, False),
        (ToyRelativistic, 1, True),
    ],
    ids=["vanilla", "relativistic", "vanilla with R1", "relativistic with R1"],
)
def test_a_game_is_the_game_by_hand(make_trainer, quick, task, penalties, relativistic):
    config = quick(steps=6, generator_lr=1e-3)
    r1 = R1() if penalties else None
    trainer = make_trainer(task, config, penalties=[r1] if r1 else [])
    by_hand = ByHand(trainer.task, config, r1, relativistic)
    for step in range(6):
        batch = trainer.batches[step]
        trainer.train_step(batch)
        of_g, of_d = by_hand.step(batch, step)
        assert_close(gradients(trainer.task.generator), of_g)
        assert_close(gradients(trainer.task.discriminator), of_d)
    assert_close(trainer.task.state_dict(), by_hand.task.state_dict())
    if r1:
        assert r1.steps == 2


def test_a_lazy_penalty_is_logged_on_its_steps_only(make_trainer, quick):
    trainer = make_trainer(ToyGAN, quick(steps=9), penalties=[R1()])
    trainer.fit()
    on = [line["step"] for line in trainer.lines if "discriminator/r1" in line]
    assert on == [1, 5, 9]  # lines count steps done; steps 0, 4 and 8 carry the penalty
    for line in trainer.lines:
        penalty = 4 * 2.5 * line.get("discriminator/r1", 0)
        expected = line["discriminator/adversarial"] + penalty
        assert line["discriminator/total"] == pytest.approx(expected, rel=1e-5)
    assert all(line["discriminator/r1"] > 1e-6 for line in trainer.lines if line["step"] in on)


@pytest.mark.parametrize("task", [ToyGAN, ToyRelativistic])
def test_a_game_moves_what_it_makes_towards_the_truth(make_trainer, quick, task):
    config = quick(steps=150, generator_lr=5e-3, discriminator_lr=5e-3, ema=0)
    trainer = make_trainer(task, config)

    def distance():
        batch = trainer.task.prepare(trainer.batches[0])
        made = trainer.task.generator(batch["label"]).detach()
        return float((made.mean((0, 2, 3)) - batch["image"].mean((0, 2, 3))).norm())

    before = distance()
    trainer.fit()
    assert distance() < 0.6 * before


@pytest.mark.parametrize(
    ("task", "penalties", "asked"),
    [(ToyGAN, 0, 3), (ToyRelativistic, 0, 4), (ToyGAN, 1, 4)],
    ids=["vanilla", "relativistic", "vanilla with R1"],
)
def test_networks_run_no_more_often_than_needed(make_trainer, task, penalties, asked):
    trainer = make_trainer(task, penalties=[R1()] * penalties)
    trainer.train_step(trainer.batches[0])
    assert trainer.task.calls == {"generator": 1, "discriminator": asked}


def test_a_frozen_discriminator_keeps_no_gradients_of_the_generators_step(make_trainer):
    seen = []

    class Spy(ToyGAN):
        def generator_losses(self, batch, out, verdict):
            flags = {p.requires_grad for p in self.discriminator.parameters()}
            before = gradients(self.discriminator)
            terms = super().generator_losses(batch, out, verdict)
            seen.append((flags, before, terms["adversarial"].requires_grad))
            return terms

        def discriminator_losses(self, batch, out, verdict):
            seen.append(({out["image"].requires_grad}, None, None))
            return super().discriminator_losses(batch, out, verdict)

    trainer = make_trainer(Spy)
    trainer.train_step(trainer.batches[0])
    (made_has_graph, *_), (frozen, before, trains) = seen
    assert made_has_graph == {False}
    assert (frozen, trains) == ({False}, True)
    after = gradients(trainer.task.discriminator)
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert all(p.requires_grad for p in trainer.task.discriminator.parameters())


def test_a_discriminator_without_a_balance_is_a_mistake(make_trainer):
    class NoBalance(ToyGAN):
        def balances(self, steps):
            return FixedBalance({"adversarial": 1.0}), None

    trainer = make_trainer(NoBalance)
    with pytest.raises(TypeError, match="NoBalance: a discriminator needs a balance"):
        trainer.train_step(trainer.batches[0])


def test_a_stateful_balance_goes_through_checkpoints(make_trainer, quick):
    class Counting(FixedBalance):
        seen = 0

        def __call__(self, terms, last_layer, step):
            self.seen += 1
            return super().__call__(terms, last_layer, step)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    def make():
        balances = Counting({"adversarial": 1.0}), Counting({"adversarial": 0.5})
        return make_trainer(ToyGAN, quick(steps=3), balances=balances)

    trainer = make()
    trainer.fit()
    other = make()
    other.load_state_dict(trainer.state_dict())
    assert [b.seen for b in other.balances] == [3, 3]
