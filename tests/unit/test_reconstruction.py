"""Total variation and what it is taken over; the distances are tested in test_losses."""

import numpy as np
import pytest
import torch

from ganlab.losses.reconstruction import dilate, total_variation


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_total_variation_by_hand():
    image = torch.tensor([[[[0.0, 1.0, 4.0], [2.0, 2.0, 9.0]]]])
    everywhere = torch.ones(1, 1, 2, 3)
    # To the right 1, 3, 0, 7; down 2, 1, 5.
    assert total_variation(image, everywhere).item() == pytest.approx(19 / 7)
    corner = torch.tensor([[[[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]])
    # Only 0 beside 1 and 0 above 2 have both pixels in it; 9 stands alone.
    assert total_variation(image, corner).item() == pytest.approx((1 + 2) / 2)


def test_total_variation_is_a_mean_over_pairs_and_bands():
    image, mask = images(3, 2, 5, 7), (images(3, 1, 5, 7, seed=1) > -0.5).double()
    expected = []
    for b in range(3):
        steps = []
        for y, x in np.ndindex(5, 7):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 5 and u < 7 and mask[b, 0, y, x] == mask[b, 0, v, u] == 1:
                    steps += (image[b, :, v, u] - image[b, :, y, x]).abs().tolist()
        expected.append(np.mean(steps))
    assert total_variation(image, mask).tolist() == pytest.approx(expected, rel=1e-12)


def test_total_variation_without_a_pair_is_zero():
    image = images(2, 3, 4, 4).requires_grad_()
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    mask[1, 0, 1, 1] = mask[1, 0, 2, 2] = 1  # touching corners are no neighbours
    found = total_variation(image, mask)
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert image.grad.abs().max() == 0
    assert total_variation(images(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).tolist() == [0]


def test_nothing_outside_the_mask_gets_through():
    image, mask = images(1, 2, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[:, :, 1:4, 2:5] = 1
    before = total_variation(image, mask)
    image = torch.where(mask > 0, image, float("nan")).requires_grad_()
    found = total_variation(image, mask)
    torch.testing.assert_close(found, before)
    found.sum().backward()
    assert image.grad.isfinite().all()
    assert (image.grad * (1 - mask)).abs().max() == 0
    assert image.grad.abs().max() > 0


def test_total_variation_has_the_right_gradient():
    mask = (images(2, 1, 4, 5, seed=1) > -0.5).double()
    image = images(2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: total_variation(x, mask), (image,))


def test_dilation_by_hand():
    mask = torch.zeros(1, 1, 4, 6)
    mask[0, 0, 1, 1] = mask[0, 0, 3, 5] = 1
    expected = [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert dilate(mask)[0, 0].tolist() == expected
    assert torch.equal(dilate(mask, 2), dilate(dilate(mask)))
    assert torch.equal(dilate(mask, 0), mask)
