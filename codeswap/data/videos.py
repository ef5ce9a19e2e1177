"""FaceForensics++ original videos (METHOD §E.5): ten random frames of each, faces detected and aligned."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from pydantic import Field

from codeswap.data.order import key_of, permute
from codeswap.data.records import Raw, Record, Source, UnusableError


class FFPP(Source):
    """`original_sequences/youtube/<compression>/videos/000.mp4` ... `999.mp4`.

    Frames are drawn without replacement by (seed, video); one without a usable face is replaced by the next drawn,
    `redraws` times at most. Each video is one person.
    """

    source: Literal["ffpp"]
    root: Path = Path("data/raw/ffpp")
    compression: Literal["raw", "c23", "c40"] = "c23"  # the paper does not say; c23 is what others test on
    videos: int = Field(1000, ge=1)
    frames: int = Field(10, ge=1)  # of each video
    redraws: int = Field(30, ge=0)
    aligned: bool = False
    min_size: int = Field(64, ge=0)
    licence: str = "FaceForensics Terms of Use: non-commercial research"

    def origin(self) -> str:
        return (
            "ask for access by the form at https://github.com/ondyari/FaceForensics and run its script with "
            f"`-d original -c {self.compression} -t videos`; licence: {self.licence}"
        )

    def _file(self, number: int) -> str:
        return f"original_sequences/youtube/{self.compression}/videos/{number:03d}.mp4"

    def missing(self) -> list[str]:
        folder = (self.root / self._file(0)).parent
        if not folder.is_dir():
            return [f"{folder}: 000.mp4 ... {self.videos - 1:03d}.mp4"]
        absent = [f"{number:03d}.mp4" for number in range(self.videos) if not (self.root / self._file(number)).exists()]
        return (
            [f"{folder}: {', '.join(absent[:5])}{' ...' if absent[5:] else ''} ({len(absent)} in all)"]
            if absent
            else []
        )

    def records(self, name: str) -> Iterator[Record]:
        """One record for each video; its faces are `<key>_0`, `<key>_1`, ... in the order drawn."""
        for number in range(self.videos):
            video = f"{number:03d}"
            file = self._file(number)
            yield Record(f"{name}-{video}", file, video, video, None, self.licence, None, wanted=self.frames)

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        return (self._frames(record) for record in records)

    def _frames(self, record: Record) -> Iterator[Raw]:
        path = self.root / record.source
        try:
            count = _packets(path)
            drawn = permute(np.arange(count), np.asarray(count), np.asarray(key_of(self.seed, record.source)))
            drawn = drawn[: self.frames + self.redraws].tolist()
            # One pass for as many candidates as are wanted: decoding runs forward only, and few videos need a second.
            for start in range(0, len(drawn), self.frames):
                batch = drawn[start : start + self.frames]
                pictures = _decode(path, set(batch))
                for number in batch:
                    if (pixels := pictures.get(number)) is not None:
                        yield Raw(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), frame=number)
        except FFmpegError as error:
            raise UnusableError("unreadable", f"{path.name}: {error.strerror}") from None


def _packets(path: Path) -> int:
    """How many frames a video holds, without decoding it."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UnusableError("unreadable", f"{path.name}: no video in it")
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _decode(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """The wanted frames, uint8 (h, w, 3), by number in the order shown; a damaged video may lack some."""
    pictures: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"  # one worker for each processor already
        for number, frame in enumerate(islice(container.decode(video=0), max(wanted) + 1)):
            if number in wanted:
                pictures[number] = frame.to_ndarray(format="rgb24")
    return pictures
