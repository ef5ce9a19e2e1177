"""Stage 1 trained on from a model: all of it, or the decoder alone, over which swap models can then train on."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from codeswap.train.codebook import CodebookTraining

pytestmark = pytest.mark.usefixtures("no_mlflow")
ON = {"start_from": "start", "warm_up": 0}
MAKES_IMAGES = ("decoder.", "post_quant.", "to_image.")


def _card(folder):
    return json.loads((folder / "card.json").read_text())


@pytest.fixture
def root(trained, copy):
    found = copy("codebook", "swap", "mask")
    shutil.copytree(trained / "models/codebook", found / "start")
    return found


def _again(root):
    """The model that was trained becomes the next start."""
    shutil.rmtree(root / "start")
    shutil.move(root / "models/codebook", root / "start")
    shutil.rmtree(root / "runs/codebook")


def test_a_training_goes_on_from_the_weights_and_codes_of_its_start(tiny, root):
    tiny.train(
        root,
        ["codebook"],
        codebook=ON | {"samples": 8, "lr": 1e-9},
        quantizer={"ema_decay": 1 - 1e-9, "restart_below": 0},
    )
    begun, ended = (load_file(root / folder / "model.safetensors") for folder in ("start", "models/codebook"))
    assert begun.keys() == ended.keys()
    for name in begun.keys() - {f"codebook.{statistic}" for statistic in ("usage", "observed", "ema_total")}:
        torch.testing.assert_close(ended[name], begun[name], rtol=0, atol=1e-4)
    card = _card(root / "models/codebook")
    assert card["lineage"]["start"] == _card(root / "start")["weights_sha256"] and card["same_codes_as"] == []


def test_the_decoder_alone_learns_and_resumes_bit_for_bit_with_encoder_and_codes_untouched(tiny, root):
    models = []
    for stops in ((), (f"codebook:24:{signal.SIGTERM}",)):
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["codebook"], codebook=ON | {"samples": 48, "decoder_only": True}) == len(stops)
        finally:
            undo()
        models.append(load_file(root / "models/codebook/model.safetensors"))
        shutil.rmtree(root / "models/codebook")
        shutil.rmtree(root / "runs/codebook")
    begun, (plain, resumed) = load_file(root / "start/model.safetensors"), models
    for name, weights in begun.items():
        assert torch.equal(plain[name], resumed[name]), name
        assert torch.equal(plain[name], weights) != name.startswith(MAKES_IMAGES), name


def test_a_swap_model_trains_on_over_another_decoder_but_not_over_other_codes(tiny, trained, root):
    shutil.copytree(trained / "models/swap/ours", root / "swap start")
    first = _card(root / "start")["weights_sha256"]
    swap = {"swap": {"start_from": "swap start", "samples": 8}}
    decoder = ON | {"samples": 8, "decoder_only": True}
    tiny.train(root, ["codebook"], codebook=decoder)
    second = _card(root / "models/codebook")["weights_sha256"]
    _again(root)
    tiny.train(root, ["codebook"], codebook=decoder)
    assert _card(root / "models/codebook")["same_codes_as"] == [first, second]
    tiny.train(root, ["swap"], **swap)
    assert _card(root / "models/swap/ours")["lineage"]["codebook"] not in (first, second)
    _again(root)
    for place in ("models", "runs"):
        shutil.rmtree(root / place / "swap")
    tiny.train(root, ["codebook"], codebook=ON | {"samples": 8})
    with pytest.raises(ValueError, match=f"made from the codebook model {first[:12]}"):
        tiny.train(root, ["swap"], **swap)


def test_a_start_that_does_not_fit_is_refused_with_all_that_differs(tiny, root):
    wider = {"vqgan": {"ch": 16, "z_ch": 8}, "quantizer": {"n_codes": 16}}
    with pytest.raises(
        ValueError, match=r"vqgan\.ch: 8, asked 16; .*z_ch: 16, asked 8; quantizer\.n_codes: 32, asked 16"
    ):
        tiny.train(root, ["codebook"], codebook=ON | {"samples": 8}, **wider)
    with pytest.raises(ValueError, match=r"none/model\.safetensors does not exist"):
        tiny.train(root, ["codebook"], codebook=ON | {"samples": 8, "start_from": "none"})
    assert not (root / "models/codebook").exists()
    with pytest.raises(ValueError, match="name it by start_from"):
        CodebookTraining(decoder_only=True)
    with pytest.raises(ValueError, match="set warm_up to 0"):
        CodebookTraining(start_from="start", warm_up=8)
