"""Label maps of a face of simple shapes, and pictures of it."""

import torch

SIZE = 64


def drawn_labels(mouth_y: int = 46) -> torch.Tensor:
    """A face in rows 14 to 54: brows at 20, eyes at 25, a nose down to 36, a mouth around `mouth_y`."""
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    labels[:, 14:54, 16:48] = 1
    labels[:, 20:22, 20:28], labels[:, 20:22, 36:44] = 2, 3
    labels[:, 25:28, 21:27], labels[:, 25:28, 37:43] = 4, 5
    labels[:, 26:36, 30:34] = 10
    labels[:, mouth_y - 2 : mouth_y + 2, 26:38] = 12
    return labels


def drawn_face(
    labels: torch.Tensor, skin: tuple[float, float, float], behind: float, lips: float = 0.5
) -> torch.Tensor:
    """Skin of one colour in [0, 1], lips `lips` times as bright, the rest grey; as a picture in [-1, 1]."""
    shape = labels[:, None].expand(-1, 3, -1, -1)
    colour = torch.tensor(skin).view(1, 3, 1, 1)
    picture = torch.where(shape > 0, colour, torch.tensor(behind))
    return torch.where(shape == 12, colour * lips, picture) * 2 - 1
