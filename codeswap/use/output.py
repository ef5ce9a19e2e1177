"""The one place that writes swapped pictures: each carries its marks unless it is told not to."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from codeswap.data.pictures import PROVENANCE
from codeswap.use import credentials, watermark
from codeswap.use.errors import UnreadableError

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_IMAGE_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131  # EXIF tags


def check_suffix(path: Path) -> None:
    """Raises UnreadableError when `path` names a format that cannot carry the marks."""
    if path.suffix.lower() not in MIME:
        raise UnreadableError(f"{path}: write one of {', '.join(MIME)}")


def write_picture(path: Path, pixels: np.ndarray, facts: Mapping[str, str], mark: bool = True) -> None:
    """Writes uint8 (h, w, 3) pixels to `path`, whole or not at all.

    `mark`: the invisible watermark, a note in the metadata, and signed Content Credentials with the model's `facts`.
    Raises UnreadableError when the place cannot be written.
    """
    check_suffix(path)
    data = encode_picture(pixels, path.suffix.lower(), path.name, facts, mark)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UnreadableError(f"{path} cannot be written ({error.strerror})") from None


def encode_picture(pixels: np.ndarray, suffix: str, title: str, facts: Mapping[str, str], mark: bool = True) -> bytes:
    """A file's bytes for uint8 (h, w, 3) pixels, with its marks (see `write_picture`)."""
    data = _encoded(watermark.embed(pixels) if mark else pixels, suffix, mark)
    return credentials.sign(data, MIME[suffix], title, facts) if mark else data


def _encoded(pixels: np.ndarray, suffix: str, mark: bool) -> bytes:
    image, out = PILImage.fromarray(pixels), io.BytesIO()
    exif = PILImage.Exif()
    if mark:
        exif[_IMAGE_DESCRIPTION], exif[_SOFTWARE] = PROVENANCE, "CodeSwap"
    match suffix:
        case ".png":
            info = PngInfo()
            if mark:
                info.add_text("Software", "CodeSwap")
                info.add_text("Comment", PROVENANCE)
            image.save(out, "PNG", pnginfo=info)
        case ".webp":
            image.save(out, "WEBP", quality=95, exif=exif)
        case _:
            image.save(out, "JPEG", quality=95, subsampling=0, exif=exif)
    return out.getvalue()
