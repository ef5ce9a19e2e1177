"""The networks of the paper's group and their usual substitutes: no package carries them, whoever has them adds them.

Hashes and sizes come from public records (release manifests, LFS pointers), not from files that we hashed.
"""

from typing import NamedTuple


class Official(NamedTuple):
    roles: str
    architecture: str | None  # what `codeswap weights convert` makes of it; None: no reader
    what: str
    file: str
    sha256: str | None  # None: not known to us
    source: str
    licence: str


OFFICIAL = (
    Official("identity_train", "arcface_iresnet100", "ArcFace iresnet100, ms1mv3", "arcface.pt", None,
             "github.com/mapooon/BlendFace", "CC BY-NC-SA 4.0; insightface: non-commercial research"),
    Official("identity_train", "arcface_onnx", "ArcFace iresnet50, WebFace600K (ONNX)", "w600k_r50.onnx",
             "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
             "github.com/deepinsight/insightface, buffalo_l", "non-commercial research"),
    Official("identity_train", "arcface_onnx", "ArcFace iresnet100, glint360k (ONNX)", "glintr100.onnx",
             "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
             "github.com/deepinsight/insightface, antelopev2", "non-commercial research"),
    Official("identity_train", "ir_se50", "IR-SE50", "model_ir_se50.pth",
             "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
             "github.com/xinntao/facexlib releases (recognition_arcface_ir_se50.pth)", "MIT code; weights by TreB1eN"),
    Official("identity_train", None, "SimSwap's ArcFace (a pickled module)", "arcface_checkpoint.tar", None,
             "github.com/neuralchen/SimSwap releases", "CC BY-NC 4.0"),
    Official("identity_eval", "cosface_sphere20", "CosFace sphere20", "CosFace_ACC99.28.pth", None,
             "github.com/MuggleWang/CosFace_pytorch", "none declared"),
    Official("expression_train", "poster_pp", "POSTER++ AffectNet-7 or RAF-DB, with ir50.pth and its mobilefacenet",
             "affectnet-7-model_best.pth", None, "github.com/Talented-Q/POSTER_V2", "MIT"),
    Official("expression_eval", "fecnet", "FECNet", "FECNet_AS20112019p.pt", None,
             "github.com/AmirSh15/FECNet", "none declared"),
    Official("expression_eval", None, "FECNet's trunk, InceptionResnetV1", "20180402-114759-vggface2.pt",
             "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
             "github.com/timesler/facenet-pytorch releases", "MIT"),
    Official("pose", "hopenet", "Hopenet ResNet-50", "hopenet_robust_alpha1.pkl",
             "1e0c6ddfda0e19a679607480c10875020de29b3984f187ec311c5e0802b6b6d5",
             "github.com/natanielruiz/deep-head-pose", "Apache-2.0"),
    Official("parsing", "bisenet", "BiSeNet ResNet-18, 19 classes (79999_iter.pth)", "parsing_bisenet.pth",
             "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
             "github.com/xinntao/facexlib releases", "MIT code; data non-commercial"),
    Official("parsing", None, "ParseNet", "parsing_parsenet.pth",
             "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
             "github.com/xinntao/facexlib releases", "not stated"),
    Official("perceptual", "vgg16_lpips", "VGG16 (trunk of LPIPS)", "vgg16-397923af.pth",
             "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
             "torchvision's model store", "BSD-style code; weights from VGG"),
    Official("perceptual", None, "VGG19", "vgg19-dcbb9e9d.pth",
             "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
             "torchvision's model store", "BSD-style code; weights from VGG"),
    Official("perceptual", "vgg16_lpips", "LPIPS linear layers", "vgg.pth",
             "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
             "inside the Python package lpips", "BSD-2-Clause"),
    Official("features", "fid_inception", "Inception v3 of FID", "pt_inception-2015-12-05-6726825d.pth",
             "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
             "github.com/mseitzer/pytorch-fid releases", "Apache-2.0"),
    Official("landmarks", None, "RetinaFace ResNet-50", "detection_Resnet50_Final.pth",
             "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
             "github.com/xinntao/facexlib releases", "MIT"),
    Official("landmarks", None, "SCRFD 10g (ONNX)", "det_10g.onnx",
             "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
             "github.com/deepinsight/insightface, buffalo_l", "non-commercial research"),
    Official("landmarks", None, "dlib's 68 landmarks", "shape_predictor_68_face_landmarks.dat",
             "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
             "dlib.net files, or the Python package face-recognition-models", "iBUG data: non-commercial"),
)  # fmt: skip
