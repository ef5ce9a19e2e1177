"""Stage 2, off-paper: a decoder of its own that learns with the fusion, and more layers than its start has."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from codeswap.models.codeswap import load_codeswap, load_fusion, load_vqgan, swap_with_features

pytestmark = pytest.mark.usefixtures("no_mlflow")
OWN = {"own_decoder": True, "start_from": "start"}


@pytest.fixture
def root(trained, copy):
    found = copy("swap", "mask")
    shutil.copytree(trained / "models/swap/ours", found / "start")
    return found


def _model(root):
    folders = (root / "models" / place for place in ("codebook", "swap/ours", "mask/ours"))
    return load_codeswap(*folders)


def test_the_decoder_learns_with_the_fusion_resumes_and_is_what_paints_swaps(tiny, root):
    stage_1 = (root / "models/codebook/model.safetensors").read_bytes()
    models = []
    for stops in ((), (f"swap-ours:32:{signal.SIGTERM}",)):
        for place in ("models/swap", "runs/swap"):
            shutil.rmtree(root / place, ignore_errors=True)
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["swap"], swap=OWN | {"ema": 0.5}) == len(stops)
        finally:
            undo()
        models.append(load_file(root / "models/swap/ours/model.safetensors"))
    plain, resumed = models
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)
    assert (root / "models/codebook/model.safetensors").read_bytes() == stage_1
    first = load_file(root / "models/codebook/model.safetensors")
    own = {name.removeprefix("decoder."): weights for name, weights in plain.items() if name.startswith("decoder.")}
    assert own.keys() == {name for name in first if name.startswith(("decoder.", "post_quant."))}
    assert not any(torch.equal(weights, first[name]) for name, weights in own.items())

    tiny.train(root, ["mask"])
    model, images = _model(root), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        out, reconstructed = model.swap(images, images.flip(0)), model.vqgan(images).image
        model.fusion.decoder.decoder.conv_out.weight.zero_()
        model.fusion.decoder.decoder.conv_out.bias.fill_(0.25)
        grey, same = model.swap(images, images.flip(0)), model.vqgan(images).image
        for_masks = swap_with_features(model.vqgan, model.fusion, images, images.flip(0))[0]
    assert (grey.naive_ab == 0.25).all() and not torch.equal(out.naive_ab, grey.naive_ab)
    assert (for_masks == 0.25).all()  # what Stage 3 learns to blend
    assert torch.equal(reconstructed, same)  # Stage 1's pictures are still Stage 1's


def test_more_layers_begin_as_the_start_and_learn(tiny, root):
    deeper = {"layers": 3}
    tiny.train(root, ["swap"], fusion=deeper, swap=OWN | {"samples": 8, "lr": 1e-9, "weight_decay": 0.0})
    vqgan = load_vqgan(root / "models/codebook")
    shallow, deep = (load_fusion(root / place, vqgan) for place in ("start", "models/swap/ours"))
    assert (len(shallow.layers), len(deep.layers)) == (1, 3)
    z_a, z_b = torch.randn(2, 2, vqgan.config.grid**2, 16, generator=torch.Generator().manual_seed(0))
    codes = vqgan.codebook.weight
    torch.testing.assert_close(deep(z_a, z_b, codes).z_q_ab, shallow(z_a, z_b, codes).z_q_ab, rtol=0, atol=1e-4)
    for place in ("models/swap", "runs/swap"):
        shutil.rmtree(root / place)
    tiny.train(root, ["swap"], fusion=deeper, swap=OWN)
    last = load_fusion(root / "models/swap/ours", vqgan).layers[-1]
    assert last.attention.project.weight.any() and last.ffn[-1].weight.any()


def test_a_start_with_what_the_training_lacks_is_refused(tiny, root):
    tiny.train(root, ["swap"], fusion={"layers": 2}, swap=OWN | {"samples": 8})
    shutil.rmtree(root / "start")
    shutil.move(root / "models/swap/ours", root / "start")
    for changes, message in (
        ({"swap": OWN}, r"layers=2.* the training asks for ours .*layers=1.* \(it may have fewer layers"),
        ({"swap": {"start_from": "start"}, "fusion": {"layers": 2}}, r"set swap\.own_decoder: true"),
    ):
        shutil.rmtree(root / "runs/swap")
        with pytest.raises(ValueError, match=message):
            tiny.train(root, ["swap"], **changes)
        assert not (root / "models/swap/ours").exists()
    card = json.loads((root / "start/card.json").read_text())
    assert card["config"]["swap"]["own_decoder"] is True
