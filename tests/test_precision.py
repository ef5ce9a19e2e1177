"""What makes a swap cheap: convolutions of 8 bits, and memory that is kept."""

import subprocess
import sys

import pytest
import torch

from codeswap.models.codeswap import CodeSwap, new_fusion
from codeswap.models.fusion import FusionConfig
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig
from codeswap.use.int8 import Int8Conv, to_int8_


@pytest.mark.parametrize("own_decoder", [False, True])
def test_eight_bits_convert_all_but_first_and_last_convolutions_and_padding_stays_zero(own_decoder: bool) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 24, 3, padding=1)
    x = torch.rand(2, 16, 9, 9) * 3 - 1
    eight = Int8Conv(conv, float(x.min()), float(x.max()))
    with torch.no_grad():
        exact, found = conv(x), eight(x)
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()
        torch.testing.assert_close(eight(10 * x), eight((10 * x).clamp(x.min(), x.max())))  # clamped, not wrapped
    config = VQGANConfig(image_size=32, ch=16, ch_mult=(1, 2), attn_res=(), z_ch=8, embed_dim=8, mid="residual")
    vqgan = VQGAN(config, QuantizerConfig(n_codes=16))
    fusion = new_fusion(FusionConfig(layers=1, width=16, heads=2, ffn=16), "ours", vqgan, own_decoder)
    model = CodeSwap(vqgan, fusion, None).eval().requires_grad_(False)
    decoder = fusion.decoder.decoder if own_decoder else vqgan.decoder
    wanted = {id(layer) for layer in (vqgan.encoder.conv_in, vqgan.encoder.conv_out, decoder.conv_in)}
    to_int8_(model, torch.rand(2, 3, 32, 32) * 2 - 1)
    left = [layer for net in (vqgan.encoder, decoder) for layer in net.modules() if type(layer) is torch.nn.Conv2d]
    assert {id(layer) for layer in left} == wanted | {id(decoder.conv_out)}
    assert sum(isinstance(layer, Int8Conv) for layer in model.modules()) > 10


@pytest.mark.parametrize(
    ("found", "levels"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False}, 127),
        ({"architecture": "x86_64", "avx2": True, "avx_vnni": True}, 255),
        ({"architecture": "aarch64"}, 255),
    ],
)
def test_inputs_get_seven_bits_where_sums_of_eight_overflow(
    found: dict[str, object], levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the largest products do not: 127 * 127 * 2 < 2**15 < 255 * 127 * 2."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    conv = torch.nn.Conv2d(16, 16, 1)
    torch.nn.init.constant_(conv.weight, 1.0)
    x = torch.full((1, 16, 4, 4), 3.0)
    eight = Int8Conv(conv, 0.0, 3.0)
    assert eight.scale == pytest.approx(3 / levels)
    if levels == 127:  # right on every processor
        torch.testing.assert_close(eight(x), conv(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(eight(2 * x), eight(x))


@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_taken_again_without_new_pages_from_the_system(kept: bool) -> None:
    program = (
        "import resource, torch\n"
        "from codeswap.use.memory import keep_freed_memory\n"
        f"assert not {kept} or keep_freed_memory()\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill():\n"
        "    torch.empty(16 * 2**20).fill_(1.0)\n"  # 64 MB, 16,384 pages
        "for _ in range(8): fill()\n"  # the heap grows to what alignment needs
        "before = faults()\n"
        "for _ in range(5): fill()\n"
        "print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 3 * 16_384) == kept  # 5 of them without; at most a growth of the heap with
