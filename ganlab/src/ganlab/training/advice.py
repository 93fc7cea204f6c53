"""What the monitor says: the kinds of failure, what they mean and what to try."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that goes wrong in a run.

    Attributes:
        kind: its name, a key of ``ADVICE``.
        steps: the first and the last step at which it was seen, the last time that it lasted.
        evidence: one sentence with the numbers.
        why: one sentence on what it means.
        remedy: one sentence on what to try, with the names of the settings.
        chapter: where the book speaks of it.
    """

    kind: str
    steps: tuple[int, int]
    evidence: str
    why: str
    remedy: str
    chapter: int


ADVICE: dict[str, tuple[str, str, int]] = {
    "non_finite": (
        "A number grew beyond what its format can hold, and everything computed from it is lost.",
        "Lower generator_lr and discriminator_lr, use precision bf16 or fp32 instead of fp16, and "
        "look at the batch that was saved.",
        12,
    ),
    "discriminator_overpowers": (
        "A discriminator that is never wrong no longer tells the generator which way is better.",
        "Lower discriminator_lr or discriminator_factor, or set stabilizers.penalties to r1, "
        "stabilizers.gate to accuracy or stabilizers.instance_noise.",
        11,
    ),
    "generator_overpowers": (
        "The generator moves away faster than the discriminator learns, so its term falls without "
        "better images.",
        "Raise discriminator_lr or discriminator.width, lower generator_lr or adversarial_weight, "
        "or set stabilizers.critic to 2 or more.",
        11,
    ),
    "vanishing_gradient": (
        "The generator is told next to nothing: a loss or an activation is saturated.",
        "Take another game (adversarial: vanilla or hinge), lower generator_lr if the outputs are "
        "stuck at the ends of their range, or lower discriminator_lr.",
        12,
    ),
    "exploding_gradient": (
        "The slopes of a network grow without a bound, and single steps undo what was learned.",
        "Set stabilizers.penalties to r1 or wgan_gp, or stabilizers.spectral to normalization, and "
        "lower the learning rate of the player that is named.",
        11,
    ),
    "mode_collapse": (
        "The generator gives nearly the same answer to different questions.",
        "Check that its inputs differ, raise the weight of the reconstruction, or set "
        "stabilizers.diversity to deviation and stabilizers.replay; for a vae lower beta.",
        12,
    ),
    "oscillation": (
        "The players, or the steps, run around the solution in place of approaching it.",
        "Lower generator_lr and discriminator_lr, keep the first of betas at 0.5 or below, or set "
        "stabilizers.penalties to r1 or stabilizers.history.",
        11,
    ),
    "flat_reconstruction": (
        "The generator has learned nothing of what is true: one colour would be as good.",
        "Raise generator_lr or the weight of the reconstruction, and check that inputs and truth "
        "belong together.",
        12,
    ),
    "blank_output": (
        "The generator paints one colour, whatever it is given.",
        "Lower generator_lr if it is above 1e-3, check that inputs and truth belong together, and "
        "for a vae lower beta or set free.",
        12,
    ),
    "checkerboard": (
        "Up-sampling leaves its grid in the image: neighbouring pixels are made by different "
        "weights.",
        "Set generator.up to resize (enlarge to subpixel or resize; to fill holes, another "
        "generator.layer than dcgan), or train longer.",
        5,
    ),
    "over_fitting": (
        "The network learns its tiles by heart.",
        "Tile more ground, set augment, take fewer steps or a smaller generator.width.",
        3,
    ),
    "weights_out_of_proportion": (
        "The weakest term has no say in what the generator learns.",
        "Change the ratio of their weights, or set balance.kind to adaptive or gradnorm.",
        9,
    ),
}
"""Why, what to try and where to read, for every kind."""
