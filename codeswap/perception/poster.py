"""POSTER++ (Mao et al. 2023), the expression network of 7 classes, with the parameter names of its checkpoints.

Shapes and names as Talented-Q/POSTER_V2 (`models/*.py`, commit aec8d8e), METHOD §B.9. Parameters that the published
forward pass never uses (output layers of both backbones, a second patch embedding, single convolutions) are kept, for
the checkpoints hold them: loading is strict.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codeswap.perception.arcface import ir_input, ir_output, ir_stage

DIMS, HEADS, WINDOWS = (64, 128, 256), (2, 4, 8), (28, 14, 7)
EMBED, TOKENS = 768, 147
CLASSES = 7


class _ConvBlock(nn.Module):
    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True, pad: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        if act:
            self.prelu = nn.PReLU(c_out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return self.prelu(x) if self.act else x


class _Depthwise(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int, stride: int, residual: bool = False) -> None:
        super().__init__()
        self.conv = _ConvBlock(c_in, groups)
        self.conv_dw = _ConvBlock(groups, groups, 3, stride, groups, pad=1)
        self.project = _ConvBlock(groups, c_out, act=False)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(self.conv_dw(self.conv(x)))
        return x + h if self.residual else h


class _Residuals(nn.Module):
    def __init__(self, width: int, count: int, groups: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(_Depthwise(width, width, groups, 1, residual=True) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _GDC(nn.Module):
    """The landmark head: in the file, never used by POSTER++."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv_6_dw = _ConvBlock(512, 512, 7, groups=512, act=False)
        self.linear = nn.Linear(512, outputs, bias=False)
        self.bn = nn.BatchNorm1d(outputs)


class MobileFaceNet(nn.Module):
    """(b, 3, 112, 112) -> maps (b, 64, 28, 28), (b, 128, 14, 14), (b, 512, 7, 7) of a landmark network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _ConvBlock(3, 64, 3, 2, pad=1)
        self.conv2_dw = _ConvBlock(64, 64, 3, 1, 64, pad=1)
        self.conv_23, self.conv_3 = _Depthwise(64, 64, 128, 2), _Residuals(64, 4, 128)
        self.conv_34, self.conv_4 = _Depthwise(64, 128, 256, 2), _Residuals(128, 6, 256)
        self.conv_45, self.conv_5 = _Depthwise(128, 128, 512, 2), _Residuals(128, 2, 256)
        self.conv_6_sep = _ConvBlock(128, 512)
        self.output_layer = _GDC(136)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.conv_3(self.conv_23(self.conv2_dw(self.conv1(x))))
        second = self.conv_4(self.conv_34(first))
        return first, second, self.conv_6_sep(self.conv_5(self.conv_45(second)))


class IR50(nn.Module):
    """(b, 3, 224, 224) -> maps of 64 at 56, 128 at 28 and 256 at 14 pixels; looks at 112 of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer, self.output_layer = ir_input(), ir_output()
        self.body1 = nn.Sequential(*ir_stage(64, 64, 3, squeeze=False))
        self.body2 = nn.Sequential(*ir_stage(64, 128, 4, squeeze=False))
        self.body3 = nn.Sequential(*ir_stage(128, 256, 14, squeeze=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.body1(self.input_layer(F.interpolate(x, size=112)))
        second = self.body2(first)
        return first, second, self.body3(second)


class _Window(nn.Module):
    """One window that covers the whole map: layer norm over channels. (b, c, s, s) -> (b, s, s, c)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1))


class _CrossAttention(nn.Module):
    """The landmark branch asks, the image branch answers; learnt bias by relative place. (b, n, c) -> (b, n, c)."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = place[:, None] - place[None] + side - 1
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * side - 1) + apart[..., 1])
        self.qkv, self.proj = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        b, n, c = x.shape
        key, value = self.qkv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        query = query.reshape(b, n, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.mlp, self.norm = _MLP(width), nn.LayerNorm(width)

    def forward(self, attended: Tensor, shortcut: Tensor) -> Tensor:
        x = shortcut + self.gamma1 * attended.view_as(shortcut)
        return x + self.gamma2 * self.mlp(self.norm(x))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(EMBED, 3 * EMBED), nn.Linear(EMBED, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, 8, c // 8).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(EMBED, eps=1e-6), nn.LayerNorm(EMBED, eps=1e-6)
        self.conv = nn.Conv1d(TOKENS + 1, TOKENS + 1, 1)  # unused
        self.attn, self.mlp = _Attention(), _MLP(EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _SE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(EMBED, EMBED), nn.Linear(EMBED, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear2(self.linear1(x).relu()).sigmoid()


class _Named(nn.Module):
    """One layer under a name of the file."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)


class _Transformer(nn.Module):
    """(b, 147, 768) -> (b, 768) after squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, EMBED))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, EMBED))
        self.se_block = _SE()
        self.blocks = nn.Sequential(_Block(), _Block())
        self.norm = nn.LayerNorm(EMBED, eps=1e-6)
        self.head = _Named("linear", nn.Linear(EMBED, CLASSES))
        # unused
        self.patch_embed = _Named("proj", nn.Conv2d(256, EMBED, 1))
        self.eca_block = _Named("conv", nn.Conv1d(1, 1, 5, padding=2, bias=False))
        self.CON1 = nn.Conv2d(256, EMBED, 1, bias=False)
        self.IRLinear1, self.IRLinear2 = nn.Linear(1024, EMBED), nn.Linear(EMBED, 512)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.se_block(self.norm(self.blocks(x))[:, 0])


class PosterPP(nn.Module):
    """(b, 3, 224, 224), ImageNet's normalisation -> (b, 768), or the 7 logits; 58.3 M parameters, a quarter unused."""

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.logits = logits
        self.face_landback, self.VIT, self.ir_back = MobileFaceNet(), _Transformer(), IR50()
        for number, (width, heads, side) in enumerate(zip(DIMS, HEADS, WINDOWS, strict=True), start=1):
            self.add_module(f"attn{number}", _CrossAttention(width, heads, side))
            self.add_module(f"window{number}", _Window(width))
            self.add_module(f"conv{number}", nn.Conv2d(width, width, 3, 2, 1))
            self.add_module(f"ffn{number}", _FeedForward(width))
        self.last_face_conv = nn.Conv2d(512, 256, 3, padding=1)
        self.embed_q = nn.Sequential(nn.Conv2d(64, EMBED, 3, 2, 1), nn.Conv2d(EMBED, EMBED, 3, 2, 1))
        self.embed_k = nn.Sequential(nn.Conv2d(128, EMBED, 3, 2, 1))
        self.embed_v = _Named("proj", nn.Conv2d(256, EMBED, 1))

    def forward(self, x: Tensor) -> Tensor:
        *landmarks, last = self.face_landback(F.interpolate(x, size=112))
        landmarks = [*landmarks, self.last_face_conv(last)]
        out = []
        for number, (asking, seen) in enumerate(zip(landmarks, self.ir_back(x), strict=True), start=1):
            part = {name: self.get_submodule(f"{name}{number}") for name in ("conv", "window", "attn", "ffn")}
            shortcut = part["window"](part["conv"](seen))
            query = asking.permute(0, 2, 3, 1).flatten(1, 2)
            out.append(part["ffn"](part["attn"](shortcut.flatten(1, 2), query), shortcut).permute(0, 3, 1, 2))
        embedded = [self.embed_q(out[0]), self.embed_k(out[1]), self.embed_v.proj(out[2])]
        feature = self.VIT(torch.cat([part.flatten(2).transpose(1, 2) for part in embedded], dim=1))
        return self.VIT.head.linear(feature) if self.logits else feature
