"""A person put on a video: every frame there at its time, sound kept, cuts and gaps survived, marked."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.data.faces import Faces
from codeswap.types import Detection
from codeswap.use import commands, credentials, watermark
from codeswap.use.errors import NoFaceError, UnreadableError
from codeswap.use.loading import load_swapper
from codeswap.use.video import FrameSwapper, Tracker, first_frame, swap_video

GREEN, BLUE = (40, 120, 60), (50, 60, 130)
SIDE, WIDTH, HEIGHT, FRAMES = 96, 320, 192, 24


class FindsPastedFaces:
    """Finds what is not background: a box for each run of columns with other colours, and points inside it."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        away = np.minimum(*(np.abs(image.astype(int) - colour).sum(axis=2) for colour in (GREEN, BLUE))) > 60
        columns = np.flatnonzero(away.sum(axis=0) > 20)
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > 4) + 1) if len(columns) else []
        return [self._face(away, run) for run in runs if len(run) > 40]

    @staticmethod
    def _face(away: np.ndarray, run: np.ndarray) -> Detection:
        rows = np.flatnonzero(away[:, run[0] : run[-1] + 1].sum(axis=1) > 20)
        box = np.array([run[0], rows[0], run[-1] + 1, rows[-1] + 1], dtype=float)
        places = np.array([[0.4, 0.48], [0.6, 0.48], [0.5, 0.58], [0.42, 0.68], [0.58, 0.68]])  # in an aligned crop
        return Detection(box, 1.0, places * (box[2:] - box[:2]) + box[:2])


@pytest.fixture(autouse=True)
def own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def video(trained: Path, tmp_path: Path) -> Path:
    """24 frames with sound: a face drifts over green, is gone in frames 8 to 11, and another shot is blue."""
    faces = Faces([trained / "data/shards/train/tiny"])
    people = [np.asarray(PILImage.fromarray(faces.read(i)).resize((SIDE, SIDE))) for i in (4, 21)]
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as target:
        pictures = target.add_stream("libx264", rate=Fraction(24), options={"crf": "12"})
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = target.add_stream("aac", rate=44100)
        for number in range(FRAMES):
            second = number >= 16
            frame = np.full((HEIGHT, WIDTH, 3), BLUE if second else GREEN, np.uint8)
            if number not in range(8, 12):
                left = 150 - 2 * (number - 16) if second else 40 + 3 * number
                frame[50 : 50 + SIDE, left : left + SIDE] = people[second]
            target.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(pictures.encode())
        tone = (np.sin(np.arange(44100) / 20) * 8000).astype(np.int16)
        for start in range(0, 44100, 1024):
            piece = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
            piece.sample_rate, piece.pts = 44100, start
            target.mux(sound.encode(piece))
        target.mux(sound.encode())
    return path


def frames_of(path: Path) -> tuple[list[np.ndarray], list[float], int]:
    """Pixels and times of the pictures, and bytes of the sound."""
    with av.open(str(path)) as container:
        shown = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = sum(packet.size for packet in container.demux(audio=0))
    return [pixels for pixels, _ in shown], [time for _, time in shown], sound


def put(trained: Path, video: Path, out: Path, mark: bool = True, position: int | None = None):
    swapper = load_swapper(trained / "models", "ours")
    source = Faces([trained / "data/shards/train/tiny"]).read(40)
    tracker = Tracker(FindsPastedFaces(), position)
    return swap_video(FrameSwapper(swapper, source, False), tracker, video, out, swapper.facts, mark)


def ann(trained: Path, folder: Path) -> Path:
    """A photograph whose face the detector above finds."""
    person = np.full((160, 160, 3), GREEN, np.uint8)
    face = PILImage.fromarray(Faces([trained / "data/shards/train/tiny"]).read(40)).resize((SIDE, SIDE))
    person[30 : 30 + SIDE, 30 : 30 + SIDE] = np.asarray(face)
    PILImage.fromarray(person).save(folder / "ann.png")
    return folder / "ann.png"


def test_every_frame_stays_in_time_and_only_faces_change(trained: Path, video: Path, tmp_path: Path) -> None:
    report = put(trained, video, tmp_path / "out.mp4", mark=False)
    assert (report.frames, report.swapped, report.shots) == (FRAMES, FRAMES - 4, 2) and 0 < report.steadiness < 3
    before, times, sound = frames_of(video)
    after, times_after, sound_after = frames_of(tmp_path / "out.mp4")
    assert len(after) == FRAMES and times_after == pytest.approx(times, abs=1e-3) and sound_after == sound > 0
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        change = np.abs(one.astype(int) - other).mean(axis=2)
        assert change[:40].mean() < 3 and change[160:].mean() < 3  # above and below the faces: the codec only
        if number in range(8, 12):
            assert change.mean() < 3
        else:
            assert change[70:130].max() > 25
    assert not list(tmp_path.glob(".*partial*"))


def test_a_swapped_video_is_marked(trained: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    put(trained, video, out)
    assert watermark.is_marked(first_frame(out)) and not watermark.is_marked(first_frame(video))
    found = credentials.read_file(out, "video/mp4")
    assert found.intact and found.source_type == credentials.SOURCE_TYPE
    assert found.model.keys() == {"codebook", "swap", "mask"}
    told = CliRunner().invoke(app, ["verify", str(out)])
    assert told.exit_code == 0 and "watermark: found" in told.output and "intact" in told.output
    assert frames_of(out)[2] > 0  # the sound is still there


def test_a_face_is_followed_and_not_exchanged_for_a_larger_one() -> None:
    def frame(left: int) -> np.ndarray:
        picture = np.full((HEIGHT, 420, 3), GREEN, np.uint8)
        picture[60:110, left : left + 50] = 200
        picture[40:130, 300:390] = 220
        return picture

    tracker = Tracker(FindsPastedFaces(), position=1)
    places = [tracker.follow(frame(20 + 6 * step))[0][2, 0] for step in range(20)]
    assert places[0] == pytest.approx(45, abs=1) and (np.diff(places) > 0).all()
    assert places[-1] == pytest.approx(45 + 6 * 19, abs=8) and tracker.shots == 1  # a little behind, never on the other
    steady = Tracker(FindsPastedFaces(), position=1)
    shaken = [steady.follow(frame(100 + (step % 2)))[0][2, 0] for step in range(20)]
    assert np.ptp(shaken[10:]) < 0.7  # a jitter of one pixel is calmed


def test_what_is_no_video_or_shows_no_face_is_said_and_nothing_is_left(trained, video, tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UnreadableError, match=r"text\.mp4 cannot be read as a video"):
        put(trained, tmp_path / "text.mp4", tmp_path / "out.mp4")
    with pytest.raises(NoFaceError, match="no frame shows the face"):
        put(trained, video, tmp_path / "out.mp4", position=5)
    with pytest.raises(UnreadableError, match=r"written as \.mp4"):
        put(trained, video, tmp_path / "out.avi")
    with pytest.raises(UnreadableError, match="does not exist"):
        put(trained, tmp_path / "none.mp4", tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*partial*"))


def test_a_video_without_an_end_is_refused_and_one_that_breaks_off_keeps_what_there_is(
    trained: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "camera.mp4")
    with pytest.raises(UnreadableError, match=r"camera\.mp4 is no file: a pipe or a camera has no end"):
        put(trained, tmp_path / "camera.mp4", tmp_path / "out.mp4")
    silent, damaged = tmp_path / "silent.mkv", tmp_path / "damaged.mp4"
    for path, options in ((silent, {}), (damaged, {"movflags": "faststart"})):
        with av.open(str(video)) as source, av.open(str(path), "w", options=options) as target:
            copy = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])
    report = put(trained, silent, tmp_path / "out.mp4", mark=False)
    assert 3 < report.frames < FRAMES and "breaks off after" in report.broken
    with av.open(str(tmp_path / "out.mp4")) as written:
        assert sum(1 for _ in written.decode(video=0)) == report.frames
    report = put(trained, damaged, tmp_path / "damaged_out.mp4", mark=False)
    assert 3 < report.frames < FRAMES and " seconds" in report.broken  # between packets or inside of one
    monkeypatch.setattr(commands, "load_detector", lambda folder: FindsPastedFaces())
    arguments = ["swap", ann(trained, tmp_path), damaged, "-o", tmp_path / "told", "--models", trained / "models"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == commands.SOME_FAILED and " seconds" in done.output


def test_the_command_takes_a_video(trained: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "load_detector", lambda folder: FindsPastedFaces())
    arguments = ["swap", ann(trained, tmp_path), video, "-o", tmp_path / "out", "--models", trained / "models"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "ann_on_clip.mp4: 24 frames in 2 shot(s), 20 swapped, 4 left; it changes" in done.output.replace("\n", "")
