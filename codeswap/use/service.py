"""`codeswap serve`: a local page and the same as JSON over HTTP, documented at /docs (OpenAPI at /openapi.json).

One model, one request at a time in it. Pictures come and go as data URLs; nothing is kept. Results carry the marks that
files carry.
"""

import base64
import binascii
import io
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, NamedTuple

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image as PILImage
from PIL import ImageOps
from pydantic import Field
from scipy.ndimage import gaussian_filter, maximum_filter

from codeswap.evaluate.views import attention
from codeswap.perception.mtcnn import MTCNN
from codeswap.types import Config
from codeswap.use import photographs
from codeswap.use.errors import UnreadableError, UseError
from codeswap.use.examples import examples
from codeswap.use.loading import Swapper
from codeswap.use.output import encode_picture
from codeswap.use.photographs import Portrait
from codeswap.use.swapping import swap_portraits

PAGE = "pages/swap.html"
EXAMPLE = 256  # pixels of an example: large enough for the watermark
_PREFIX = "data:image/"


class Limits(NamedTuple):
    """What one visitor may ask of this machine."""

    megabytes: float = 12.0  # of one request
    pixels: int = 24_000_000  # of one picture
    per_minute: int = 30  # requests that compute
    password: str | None = None


class Pair(Config):
    """Two pictures as data URLs (data:image/png;base64,...), and how to read them."""

    a: str
    b: str
    aligned: bool = Field(False, description="the pictures are FFHQ-aligned square crops")
    match_colour: bool = Field(False, description="give the swapped face the target's colours")


class RegionPair(Pair):
    """A swap of some of the target's tokens only."""

    cells: list[int] = Field(description="numbers of the tokens to swap, row by row from 0", min_length=1)


class PlacePair(Pair):
    """A place of the target's aligned face, x and y from 0 to 1."""

    x: float = Field(ge=0, lt=1)
    y: float = Field(ge=0, lt=1)


class Swapped(Config):
    """Results as data URLs; `ba` and `mask_a` are null where the model swaps one way only."""

    ab: str
    ba: str | None
    mask_b: str | None
    mask_a: str | None
    face_a: str
    face_b: str


class Picture(Config):
    picture: str


class Facts(Config):
    """Of the model: side of its crops, tokens on a side, hashes of its weights; and whether photographs can be read."""

    size: int
    grid: int
    model: dict[str, str]
    photographs: bool


def create_app(swapper: Swapper, detector: MTCNN | None, limits: Limits) -> FastAPI:
    """The service. Without a detector it takes aligned crops only."""
    app = FastAPI(title="CodeSwap", description="Only with the consent of everybody shown. Results are marked.")
    guard = [Depends(_password(limits.password))] if limits.password else []
    turn, asked = threading.Lock(), defaultdict[str, deque[float]](deque)

    @app.middleware("http")
    async def limited(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if request.method == "POST":
            if not length.isdigit() or int(length) > limits.megabytes * 2**20:
                return _refused(413, f"a request may have {limits.megabytes:g} MB: send smaller pictures")
            times, now = asked[request.client.host if request.client else ""], time.monotonic()
            while times and times[0] < now - 60:
                times.popleft()
            if len(times) >= limits.per_minute:
                return _refused(429, f"{limits.per_minute} requests a minute are allowed: wait a little")
            times.append(now)
        return await go_on(request)

    @app.exception_handler(UseError)
    async def told(request: Request, error: UseError) -> JSONResponse:
        return _refused(422, str(error))

    def read(pair: Pair) -> list[Portrait]:
        if detector is None and not pair.aligned:
            raise UnreadableError(
                "there is no face detector here: send aligned crops, or `codeswap weights fetch --only mtcnn`"
            )
        pictures = [picture_of(text, name, limits.pixels) for text, name in ((pair.a, "A"), (pair.b, "B"))]
        finder = None if pair.aligned else detector
        named = zip(("picture A", "picture B"), pictures, strict=True)
        return [Portrait(picture, photographs.face_in(name, picture, finder, swapper.cut)) for name, picture in named]

    def marked(pixels: np.ndarray) -> str:
        return data_url(encode_picture(pixels, ".png", "swap.png", swapper.facts))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False, dependencies=guard)
    def page() -> str:
        return (files("codeswap.use") / PAGE).read_text()

    @app.get("/api/model", dependencies=guard)
    def model() -> Facts:
        """What is loaded here."""
        return Facts(size=swapper.size, grid=swapper.grid, model=swapper.facts, photographs=detector is not None)

    @app.get("/api/examples", dependencies=guard)
    def some() -> list[str]:
        """Rendered faces of nobody, aligned crops, to try it with."""
        return [data_url(png_of(pixels)) for pixels in examples(EXAMPLE)]

    @app.post("/api/swap", dependencies=guard)
    def swap(pair: Pair) -> Swapped:
        """Both swaps of the largest faces of two pictures."""
        with turn:
            a, b = read(pair)
            (found,) = swap_portraits(swapper, [(a, b)], pair.match_colour)
        return Swapped(
            ab=marked(found.ab),
            ba=None if found.ba is None else marked(found.ba),
            mask_b=_mask(found.crops.mask_b),
            mask_a=_mask(found.crops.mask_a),
            face_a=data_url(png_of(a.face.crop)),
            face_b=data_url(png_of(b.face.crop)),
        )

    @app.post("/api/region", dependencies=guard)
    def region(pair: RegionPair) -> Picture:
        """Picture B with the identity of A in some tokens of its face only."""
        n = swapper.grid
        if outside := [cell for cell in pair.cells if not 0 <= cell < n * n]:
            raise UnreadableError(f"there is no cell {outside[0]}: they are numbered from 0 to {n * n - 1}")
        painted = np.zeros(n * n, dtype=bool)
        painted[pair.cells] = True
        inside = painted.reshape(n, n).repeat(swapper.cell, 0).repeat(swapper.cell, 1)
        with turn:
            a, b = read(pair)
            crop = swapper.swap_region(a.face.crop, b.face.crop, inside)
        soft = gaussian_filter(maximum_filter(inside.astype(np.float32), swapper.cell + 1), swapper.cell / 2)
        return Picture(picture=marked(photographs.paste(b.pixels, b.face, crop, soft, pair.match_colour)))

    @app.post("/api/attention", dependencies=guard)
    def look(pair: PlacePair) -> Picture:
        """Where a place of A's swap onto B looks."""
        with turn:
            crops = [swapper.tensor(portrait.face.crop) for portrait in read(pair)]
            shown = attention(swapper.model, *crops, at=(pair.x, pair.y))
        return Picture(picture=marked(np.asarray(shown)))

    return app


def picture_of(text: str, name: str, most: int) -> np.ndarray:
    """A data URL as uint8 (h, w, 3), upright. Raises UnreadableError naming the picture."""
    if not text.startswith(_PREFIX) or ";base64," not in text[:64]:
        raise UnreadableError(f"picture {name} is no picture: expected a data URL, data:image/...;base64,...")
    try:
        data = base64.b64decode(text.split(",", 1)[1], validate=True)
        with PILImage.open(io.BytesIO(data)) as image:
            if image.width * image.height > most:
                raise UnreadableError(f"picture {name} is {image.width}x{image.height}: at most {most:,} pixels")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, binascii.Error, PILImage.DecompressionBombError) as error:
        if isinstance(error, UseError):
            raise
        raise UnreadableError(f"picture {name} cannot be read as a picture") from None


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def png_of(pixels: np.ndarray) -> bytes:
    """An unmarked PNG: of inputs and masks, in which nothing is generated."""
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _mask(mask: np.ndarray | None) -> str | None:
    return None if mask is None else data_url(png_of(np.rint(mask * 255).astype(np.uint8)))


def _refused(code: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, code)


def _password(password: str) -> Callable[[HTTPBasicCredentials], None]:
    def check(given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
        if not secrets.compare_digest(given.password.encode(), password.encode()):
            raise HTTPException(401, "wrong password", {"WWW-Authenticate": "Basic"})

    return check
