"""FID and KID of given features against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ganlab.distributions import frechet_distance, kernel_distance


class Given(torch.nn.Module):
    """A "network" that hands features through."""

    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture(params=[(40, 5), (200, 12), (12, 12)])
def sets(request):
    n, d = request.param
    dice = np.random.default_rng(n)
    mixing = dice.normal(size=(d, d))
    return dice.normal(size=(n, d)), dice.normal(size=(n, d)) @ mixing + 0.5


def fed(metric, sets):
    for features, real in zip(sets, (True, False), strict=True):
        metric.update(torch.from_numpy(features)[:, :, None, None], real=real)
    return metric


def test_frechet_distance(sets):
    metric = FrechetInceptionDistance(Given(sets[0].shape[1]), input_img_size=(1, 1, 1))
    metric.set_dtype(torch.float64)
    expected = fed(metric, sets).compute().item()
    # torchmetrics takes eigenvalues of a matrix that is not symmetric: the reference is the worse.
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel:UserWarning")
def test_kernel_distance(sets):
    metric = KernelInceptionDistance(Given(sets[0].shape[1]), subsets=1, subset_size=len(sets[0]))
    metric.set_dtype(torch.float64)
    expected = fed(metric, sets).compute()[0].item()
    assert kernel_distance(*sets) == pytest.approx(expected, rel=1e-5)
