"""The class median: against torch.median, over batches, with gaps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganlab.baselines import ClassMedian
from ganlab.errors import InputError


def tiles(seed=0, samples=6, bands=3, size=9, classes=(2, 5, 40)):
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 1, size, size)
    labels = torch.tensor(classes)[torch.randint(len(classes), shape, generator=generator)]
    stored = torch.randint(0, 256, (samples, bands, size, size), generator=generator)
    stored = (stored + labels).clamp(max=255).to(torch.uint8)
    valid = (torch.rand(shape, generator=generator) > 0.3).float()
    return labels, stored, valid


def medians(labels, image, valid, classes):
    """The definition: torch.median (the lower one) of the valid pixels of a class, by band."""
    return torch.stack(
        [
            image.movedim(1, 0)[:, ((labels == c) & (valid > 0))[:, 0]].median(1).values
            for c in classes
        ]
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), bands=st.integers(1, 4), size=st.integers(3, 9))
def test_exact_for_stored_and_scaled_bytes(seed, bands, size):
    classes = (2, 5, 40)
    labels, stored, valid = tiles(seed, bands=bands, size=size)
    raw = ClassMedian(classes, bands, low=0, high=255, levels=256)
    scaled = ClassMedian(classes, bands)
    image = stored.float() / 127.5 - 1
    for part in (slice(0, 2), slice(2, 6)):
        raw.update(labels[part], stored[part], valid[part])
        scaled.update(labels[part], image[part], valid[part])
    expected = medians(labels, stored, valid, classes)
    assert torch.equal(raw.colours()[:-1], expected.float())
    torch.testing.assert_close(scaled.colours()[:-1], expected / 127.5 - 1, rtol=0, atol=1e-6)


def test_floats_are_rounded_finely():
    labels, stored, valid = tiles(size=40)
    image = torch.randn(stored.shape, generator=torch.Generator().manual_seed(1)) / 2
    baseline = ClassMedian((2, 5, 40), 3)
    baseline.update(labels, image, valid)
    expected = medians(labels, image, valid, (2, 5, 40))
    torch.testing.assert_close(baseline.colours()[:-1], expected, rtol=0, atol=0.00025)


def test_invalid_pixels_do_not_count():
    labels, stored, valid = tiles()
    image = stored.float() / 127.5 - 1
    colours = []
    for value in (0.0, 50.0, float("nan")):
        baseline = ClassMedian((2, 5, 40), 3)
        baseline.update(labels, image.masked_fill(valid == 0, value), valid)
        colours.append(baseline.colours())
    assert torch.equal(colours[0], colours[1])
    assert torch.equal(colours[0], colours[2])


def test_prediction_paints_classes():
    baseline = ClassMedian((1, 3), 2, low=0, high=9, levels=10)
    labels = torch.tensor([[[[1, 3], [3, 3]]]])
    image = torch.tensor([[[[4, 7], [8, 9]], [[0, 1], [2, 2]]]])
    baseline.update(labels, image, torch.ones(1, 1, 2, 2))
    unseen = torch.tensor([[[[3, 1, 2, 0, 99]]]])  # the last three were never seen
    predicted = baseline.predict(unseen)
    assert predicted.dtype == torch.float32
    assert predicted.tolist() == [[[[8, 4, 7, 7, 7]], [[2, 0, 1, 1, 1]]]]


def test_class_without_pixels_takes_the_overall_median():
    baseline = ClassMedian((0, 1), 1, low=0, high=9, levels=10)
    baseline.update(torch.zeros(1, 1, 1, 3).long(), torch.tensor([[[[2, 3, 7]]]]), torch.ones(1))
    assert baseline.colours().tolist() == [[3], [3], [3]]


def test_median_beats_every_other_colour_in_l1():
    labels, stored, valid = tiles(size=30)
    image = stored.float() / 127.5 - 1
    baseline = ClassMedian((2, 5, 40), 3)
    baseline.update(labels, image, valid)

    def error(prediction):
        return float(((prediction - image).abs() * valid).double().sum())

    best = error(baseline.predict(labels))
    for shift in (-0.05, 0.05):
        assert error(baseline.predict(labels) + shift) > best
    mean = (image * valid).sum((0, 2, 3), keepdim=True) / valid.sum()
    assert error(mean.expand_as(image)) > best


def test_memory_does_not_grow():
    labels, stored, valid = tiles()
    baseline = ClassMedian((2, 5, 40), 3)
    size = baseline.counts.numel()
    for _ in range(3):
        baseline.update(labels, stored.float() / 127.5 - 1, valid)
    assert baseline.counts.numel() == size
    assert baseline.counts.sum() == 3 * 3 * valid.sum()


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="ascending"):
        ClassMedian((3, 1), 3)
    with pytest.raises(InputError, match="ascending"):
        ClassMedian((), 3)
    with pytest.raises(InputError, match="expected the declared 3"):
        ClassMedian((1,), 3).update(
            torch.ones(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        )
