"""A person of a photograph on a video: one face tracked through each shot, steadied in time, the sound kept."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from tqdm import tqdm

from codeswap.data.align import align, quad_of
from codeswap.perception.mtcnn import MTCNN, largest
from codeswap.types import Detection
from codeswap.use import credentials, watermark
from codeswap.use.errors import NoFaceError, UnreadableError
from codeswap.use.loading import Swapper
from codeswap.use.photographs import SMALLEST, Face, in_profile, paste

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
CUT = 0.12  # mean change of a 16x16 colour thumbnail, 0..1, from which on another shot has begun
NEAR = 0.8  # of the face's side: how far it may move from one frame to the next
STEADY, FAST = 0.35, 8.0  # share of a new position that is taken; more, the faster the face moves
MASK_SHARE = 0.5  # of a new mask
EARLY = 0.9  # of its length: a video without sound whose frames end before it breaks off
AHEAD = 4  # frames decoded ahead, and as many not encoded yet
CODEC, QUALITY = "libx264", {"crf": "18", "preset": "medium"}


class Report(NamedTuple):
    """What became of a video.

    `steadiness` compares in the aligned crops how much the result changes from frame to frame with how much the input
    does itself: 1 is as steady, 2 flickers twice as much; None without two swapped frames. `broken` says where the
    input breaks off, if it does before its end.
    """

    frames: int
    swapped: int
    shots: int
    steadiness: float | None
    broken: str | None = None

    def __str__(self) -> str:
        left = self.frames - self.swapped
        text = f"{self.frames} frames in {self.shots} shot(s), {self.swapped} swapped, {left} left"
        if self.steadiness is not None:
            text += f"; it changes {self.steadiness:.2f} times as the input does"
        return text if self.broken is None else f"{text}; {self.broken}"


class Tracker:
    """Follows one face through a shot; `position` from the left chooses it where a shot begins, else the largest."""

    def __init__(self, detector: MTCNN, position: int | None) -> None:
        self._detector, self._position = detector, position
        self._thumbnail: np.ndarray | None = None
        self._face: Detection | None = None
        self._points: np.ndarray | None = None
        self.shots = 0

    def follow(self, pixels: np.ndarray) -> tuple[np.ndarray | None, bool]:
        """The steadied points (5, 2) of the face in the next frame (None: not seen), and whether a shot begins."""
        thumbnail = _thumbnail(pixels)
        cut = self._thumbnail is None or float(np.abs(thumbnail - self._thumbnail).mean()) > CUT
        self._thumbnail = thumbnail
        if cut:
            self._face = self._points = None
            self.shots += 1
        found = [face for face in self._detector.detect(pixels) if face.side >= SMALLEST]
        face = self._same(found) if self._face is not None else self._first(found)
        if face is None:
            self._points = None  # when it comes back it does not slide in from where it left
            return None, cut
        if self._points is None:
            self._points = face.points.astype(np.float64)
        else:
            moved = np.abs(face.points - self._points).mean() / face.side
            share = min(1.0, STEADY + FAST * moved)
            self._points = self._points + share * (face.points - self._points)
        self._face = face
        return self._points, cut

    def _first(self, found: list[Detection]) -> Detection | None:
        ordered = sorted(found, key=lambda face: face.box[0])
        if self._position is None:
            return largest(ordered) if ordered else None
        return ordered[self._position - 1] if len(ordered) >= self._position else None

    def _same(self, found: list[Detection]) -> Detection | None:
        centre, side = _centre(self._face), self._face.side
        near = [
            face for face in found if np.hypot(*(_centre(face) - centre)) < NEAR * side and 0.6 < face.side / side < 1.7
        ]
        return min(near, key=lambda face: np.hypot(*(_centre(face) - centre)), default=None)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    height, width = (side // 16 * 16 for side in pixels.shape[:2])
    if not height or not width:
        return pixels.mean(axis=(0, 1)) / 255
    return pixels[:height, :width].reshape(16, height // 16, 16, width // 16, 3).mean(axis=(1, 3)) / 255


def _centre(face: Detection) -> np.ndarray:
    return np.array([face.box[0] + face.box[2], face.box[1] + face.box[3]]) / 2


class FrameSwapper:
    """Puts the person of one aligned crop on frame after frame, and keeps count of how steady the result is."""

    def __init__(self, swapper: Swapper, source: np.ndarray, match_colour: bool) -> None:
        self._cut, self._swap, self._match_colour = swapper.cut, swapper.onto(source), match_colour
        self._mask: np.ndarray | None = None
        self._before: tuple[np.ndarray, np.ndarray] | None = None  # crop and swap of the frame before
        self._changes = [0.0, 0.0]  # of the inputs, of the results
        self.swapped = 0

    def __call__(self, pixels: np.ndarray, points: np.ndarray | None, cut: bool) -> np.ndarray:
        """The next frame with its face swapped where the tracker saw it (`Tracker.follow`), or the frame itself."""
        hidden = points is None or in_profile(points)
        if cut or hidden:
            self._mask = self._before = None
        if hidden:
            return pixels
        try:
            quad = quad_of(points, self._cut.framing)
            crop = align(pixels, quad, self._cut.size).pixels
        except ValueError:  # points that show no face, or one outside the frame
            self._mask = self._before = None
            return pixels
        naive, mask = self._swap(crop)
        if mask is not None and self._mask is not None:
            mask = self._mask + MASK_SHARE * (mask - self._mask)
        self._mask = mask
        if self._before is not None:
            weight = np.ones(crop.shape[:2]) if mask is None else mask
            for place, (now, then) in enumerate(zip((crop, naive), self._before, strict=True)):
                self._changes[place] += float((np.abs(now.astype(np.float32) - then).mean(axis=2) * weight).mean())
        self._before = crop, naive
        self.swapped += 1
        return paste(pixels, Face(quad, crop, self._cut.framing), naive, mask, self._match_colour)

    @property
    def steadiness(self) -> float | None:
        """See Report."""
        inputs, results = self._changes
        return results / inputs if inputs > 0 else None


def swap_video(
    frames: FrameSwapper, tracker: Tracker, video: Path, out: Path, facts: dict[str, str], mark: bool
) -> Report:
    """Swaps a video's frames into the mp4 `out`, whole or not at all; sound and times stay as they are.

    Of a video that breaks off the frames before are kept, and the report says so.
    Raises UnreadableError for what is no video or has no end, NoFaceError when no frame shows the face.
    """
    if out.suffix.lower() != ".mp4":
        raise UnreadableError(f"{out}: a swapped video is written as .mp4")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, signed = (out.with_name(f".{out.stem}.{kind}.partial.mp4") for kind in ("frames", "signed"))
    try:
        count, broken = _pass_through(frames, tracker, video, partial, mark)
        if not frames.swapped:
            raise NoFaceError(f"{video}: no frame shows the face that is asked for")
        if mark:
            credentials.sign_file(partial, signed, out.name, facts)
            os.replace(signed, out)
        else:
            os.replace(partial, out)
    except FFmpegError as error:
        raise UnreadableError(f"{video} cannot be read as a video ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
        signed.unlink(missing_ok=True)
    return Report(count, frames.swapped, tracker.shots, frames.steadiness, broken)


def _pass_through(frames: FrameSwapper, tracker: Tracker, video: Path, out: Path, mark: bool) -> tuple[int, str | None]:
    """Decodes, swaps, marks and encodes; copies the sound. The number of frames, and where the input breaks off."""
    if not video.exists():
        raise UnreadableError(f"{video} does not exist")
    if not video.is_file():
        raise UnreadableError(f"{video} is no file: a pipe or a camera has no end; record it first")
    count, (height, width, _) = 0, first_frame(video).shape
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        pictures = source.streams.video[0]
        pictures.thread_type = "AUTO"
        sound = [
            (stream, target.add_stream_from_template(stream))
            for stream in source.streams.audio
            if stream.codec_context.name in ("aac", "mp3", "ac3", "opus", "alac")  # what an mp4 may hold
        ]
        copied = {stream.index: copy for stream, copy in sound}
        encoder = target.add_stream(CODEC, rate=pictures.average_rate or Fraction(25), options=QUALITY)
        encoder.height, encoder.width = height, width  # before sound comes, which opens the file
        encoder.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"  # half the chroma needs even sides
        encoder.time_base = pictures.time_base
        stream = Items(source, pictures, [stream for stream, _ in sound])

        def write(item: "av.Packet | Decoded", swapped: np.ndarray | None) -> None:
            """In the writer's thread alone, in the order of the input."""
            if swapped is None:
                item.stream = copied[item.stream.index]
                target.mux(item)
                return
            made = av.VideoFrame.from_ndarray(watermark.embed(swapped) if mark else swapped, format="rgb24")
            made.pts, made.time_base = item.pts, item.time_base
            target.mux(encoder.encode(made))

        bar = tqdm(total=pictures.frames or None, unit="frame", disable=None)

        def read() -> "tuple[av.Packet | Decoded | None, tuple[np.ndarray | None, bool] | None]":
            """In the reader's thread alone: the next item, and of a frame where its face is."""
            item = next(stream, None)
            return item, tracker.follow(item.pixels) if isinstance(item, Decoded) else None

        # one thread decodes and tracks ahead and one marks and encodes behind, while this one swaps
        with ThreadPoolExecutor(1, "decode") as reader, ThreadPoolExecutor(1, "encode") as writer:
            ahead = deque(reader.submit(read) for _ in range(AHEAD))
            behind: deque[Future[None]] = deque()
            while (found := ahead.popleft().result())[0] is not None:
                ahead.append(reader.submit(read))
                item, seen = found
                swapped = None if seen is None else frames(item.pixels, *seen)
                behind.append(writer.submit(write, item, swapped))
                if len(behind) > AHEAD:
                    behind.popleft().result()
                count += swapped is not None
                bar.update(swapped is not None)
            for written in behind:
                written.result()
        target.mux(encoder.encode())
        bar.close()
    return count, stream.broken


class Decoded(NamedTuple):
    """A frame of the input, upright."""

    pixels: np.ndarray
    pts: int | None
    time_base: Fraction | None


class Items:
    """Decoded frames and undecoded sound in the order in which the file has them; `broken` is known after the last."""

    def __init__(
        self, source: av.container.InputContainer, pictures: av.VideoStream, sound: list[av.AudioStream]
    ) -> None:
        self.broken: str | None = None
        self._source, self._pictures, self._sound, self._until = source, pictures, sound, 0.0
        self._items = self._read()

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> "av.Packet | Decoded":
        try:
            return next(self._items)
        except StopIteration:
            length = self._source.duration  # of the longest stream, in millionths of a second
            if not self.broken and not self._sound and length is not None and self._until < EARLY * length / 1e6:
                self.broken = f"the file breaks off after {self._until:.1f} of {length / 1e6:.1f} seconds"
            raise
        except FFmpegError as error:
            if not self._until:
                raise
            self.broken = f"the file is damaged after {self._until:.1f} seconds ({error.strerror})"
            raise StopIteration from None

    def _read(self) -> "Iterator[av.Packet | Decoded]":
        for packet in self._source.demux([self._pictures, *self._sound]):
            if packet.stream.index != self._pictures.index:
                if packet.dts is not None:
                    yield packet
                continue
            for frame in packet.decode():
                self._until = max(self._until, frame.time or 0.0)
                yield Decoded(_upright(frame), frame.pts, frame.time_base)


def first_frame(video: Path) -> np.ndarray:
    """The first frame, uint8 (h, w, 3). Raises UnreadableError."""
    try:
        with av.open(str(video)) as source:
            return _upright(next(source.decode(video=0)))
    except (FFmpegError, StopIteration, IndexError) as error:
        raise UnreadableError(f"{video} cannot be read as a video ({error or 'it has no frame'})") from None


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame as a viewer sees it: phones note a rotation instead of turning the pixels."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
