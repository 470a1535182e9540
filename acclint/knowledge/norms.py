"""Which layers and models normalise over the batch in training mode."""

from __future__ import annotations

import re

_LAYERS = frozenset(
    {f"torch.nn.{name}" for name in (
        "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "LazyBatchNorm1d", "LazyBatchNorm2d",
        "LazyBatchNorm3d",
    )}
    | {f"torch.nn.modules.batchnorm.{name}" for name in (
        "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "LazyBatchNorm1d", "LazyBatchNorm2d",
        "LazyBatchNorm3d",
    )}
    | {
        "torch.nn.functional.batch_norm",
        "torch.nn.SyncBatchNorm.convert_sync_batchnorm",
        "timm.layers.BatchNormAct2d", "timm.layers.SyncBatchNormAct", "timm.layers.norm_act.BatchNormAct2d",
        "timm.layers.ConvNormAct", "timm.layers.ConvBnAct",
        "timm.models.layers.BatchNormAct2d",
        "apex.parallel.SyncBatchNorm",
        "inplace_abn.InPlaceABN", "inplace_abn.InPlaceABNSync", "inplace_abn.ABN",
    }
)  # fmt: skip
"""torch 2.13.0 nn/modules/batchnorm.py; timm 1.0.31 layers/norm_act.py; apex parallel; inplace_abn.

Statistics of SyncBatchNorm are those of the batch over all processes.
"""

_WITHOUT_NAMES = (
    "Linear LazyLinear Bilinear Identity Conv1d Conv2d Conv3d LazyConv1d LazyConv2d LazyConv3d ConvTranspose1d "
    "ConvTranspose2d ConvTranspose3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d LayerNorm "
    "GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d LazyInstanceNorm2d "
    "LazyInstanceNorm3d LocalResponseNorm CrossMapLRN2d ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU "
    "SiLU Mish Sigmoid Tanh Softmax LogSoftmax Softmin Softplus Softsign Hardtanh Hardswish Hardsigmoid "
    "Threshold GLU Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout Embedding "
    "EmbeddingBag Flatten Unflatten MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
    "AdaptiveMaxPool3d FractionalMaxPool2d LPPool1d LPPool2d Upsample UpsamplingBilinear2d UpsamplingNearest2d "
    "PixelShuffle PixelUnshuffle ZeroPad1d ZeroPad2d ZeroPad3d ReflectionPad1d ReflectionPad2d ReplicationPad1d "
    "ReplicationPad2d ConstantPad1d ConstantPad2d Fold Unfold ChannelShuffle RNN LSTM GRU RNNCell LSTMCell "
    "GRUCell MultiheadAttention Transformer TransformerEncoder TransformerDecoder TransformerEncoderLayer "
    "TransformerDecoderLayer CosineSimilarity PairwiseDistance"
)
_WITHOUT = frozenset(f"torch.nn.{name}" for name in _WITHOUT_NAMES.split()) | {
    "torchvision.ops.FrozenBatchNorm2d",
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "torchvision.ops.MLP",
}
"""torch 2.13.0 nn/modules. Containers are not here: they are what is put into them."""

_VISION_WITH = (
    r"densenet\d+|efficientnet_(b\d|v2_[sml])|googlenet|inception_v3|maxvit_t|mnasnet\d_\d+|mobilenet_v2"
    r"|mobilenet_v3_(large|small)|regnet_[xy]_\w+|resnet(18|34|50|101|152)|resnext\w+|wide_resnet\w+"
    r"|shufflenet_v2_\w+|vgg(11|13|16|19)_bn|deeplabv3_\w+|fcn_resnet\w+|lraspp_\w+|mc3_18|r2plus1d_18|r3d_18|s3d"
    r"|raft_large|ssdlite320_mobilenet_v3_large"
    r"|(fasterrcnn|maskrcnn|retinanet)_resnet50_fpn_v2"
)
_VISION_WITHOUT = (
    r"alexnet|convnext_\w+|squeezenet\d_\d|swin_\w+"
    r"|swin3d_\w+|vgg(11|13|16|19)|vit_\w+|mvit_\w+|ssd300_vgg16|raft_small"
)
_VISION_FROZEN_IF_TRAINED = (
    r"fasterrcnn_(resnet50_fpn|mobilenet_v3_large_fpn|mobilenet_v3_large_320_fpn)|maskrcnn_resnet50_fpn"
    r"|keypointrcnn_resnet50_fpn|retinanet_resnet50_fpn|fcos_resnet50_fpn"
)
"""torchvision 0.28.0 (BatchNorm layers counted with weights=None) and 0.29.1 torchvision/models/**.

The third group has FrozenBatchNorm2d wherever weights or weights_backbone is given, and weights_backbone is by default
(detection/faster_rcnn.py:570,681, fcos.py:764, keypoint_rcnn.py:465, mask_rcnn.py:500, retinanet.py:812); the _v2
detectors keep BatchNorm2d (faster_rcnn.py:643).
"""

_TIMM_WITH = (
    r"(tv_|gluon_|ssl_|swsl_|ecaresnet|seresnet|legacy_seresne|gcresnet|skresne|cspresne|resnest)?resnet(18|26|34|50|101|152)\w*"
    r"|(ecaresnet|seresnet|gcresnet|skresnet|cspresnet|resnest|legacy_seresnet|legacy_seresnext|seresnext|skresnext|cspresnext)\w*"
    r"|resnext\w+|wide_resnet\w+|res2net\w+|res2next\w+|resnet(rs|blur|d|14t|10t)\w*"
    r"|(tf_)?efficientnet(v2)?_\w+|(tf_)?mobilenetv3_\w+|mobilenetv2_\w+|mixnet_\w+|tf_mixnet_\w+|mnasnet_\w+|semnasnet_\w+"
    r"|fbnet\w+|spnasnet_\w+|lcnet_\w+|tinynet_\w+|densenet\w+|dla\w+|dpn\w+|darknet\w+|cspdarknet\w+|ghostnet\w*|hrnet_\w+"
    r"|hgnet\w*|inception_\w+|regnet[xyz]_\w+|repvgg_\w+|repvit_\w+|rexnet\w*|selecsls\w+|senet\d+|tresnet_\w+|vovnet\w+"
    r"|ese_vovnet\w+|xception\w*|nasnetalarge|pnasnet5large|levit_\w+|fastvit_\w+|mobilevit_\w+|mobilevitv2_\w+|convmixer_\w+"
    r"|efficientformer\w*|tiny_vit_\w+|visformer_\w+|volo_\w+|xcit_\w+|vgg\d+_bn|mobileone_\w+|starnet_\w+|fasternet_\w+"
)
_TIMM_WITHOUT = (
    r"vit_(tiny|small|base|large|huge|giant|gigantic|so400m\w*|medium|little)_(patch|plus)\w*|deit3?_\w+|swin_\w+|swinv2_\w+"
    r"|convnext\w*|beit\w*|cait_\w+|coat_\w+|crossvit_\w+|eva\w*|focalnet_\w+|hiera_\w+|mixer_\w+|gmlp_\w+|resmlp_\w+"
    r"|mvitv2_\w+|nest_\w+|pit_\w+|pvt_v2_\w+|tnt_\w+|twins_\w+|vgg(11|13|16|19)|nfnet_\w+|dm_nfnet_\w+|nf_\w+|caformer_\w+"
    r"|poolformer\w*|convformer_\w+|vitamin_\w+|flexivit_\w+|samvit_\w+"
)
"""timm 1.0.31: families whose first model was built on the meta device, by the names of timm.list_models()."""

_SMP_NAMES = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer DPT"
_SMP = frozenset(_SMP_NAMES.split())
"""segmentation_models_pytorch 0.6.0, encoder resnet34 (or ViT for DPT): all have BatchNorm in the decoder."""

_VISION_PACKAGES = (
    "torchvision.models", "torchvision.models.detection", "torchvision.models.segmentation", "torchvision.models.video",
    "torchvision.models.optical_flow",
)  # fmt: skip

_MISSING = object()


def is_batchnorm_layer(path: str) -> bool:
    """Whether the class of this dotted path normalises with the statistics of the batch in training mode."""
    return path in _LAYERS


def has_batchnorm(path: str, literal_args: dict[str | int, object]) -> bool | None:
    """Whether what this class or factory builds normalises over the batch in training mode; None if not known.

    `literal_args` maps keywords and positions (from 0) to literal values; an argument given with an unknown value maps
    to Ellipsis. A layer that a caller passes in (`norm_layer=...`) makes the answer None.
    """
    if is_batchnorm_layer(path):
        return True
    if path in _WITHOUT:
        return False
    package, _, name = path.rpartition(".")
    if path in ("torchvision.ops.Conv2dNormActivation", "torchvision.ops.Conv3dNormActivation",
                "torchvision.ops.misc.Conv2dNormActivation", "torchvision.ops.misc.Conv3dNormActivation"):  # fmt: skip
        return None if _given(literal_args, "norm_layer", 6) else True
    if package in _VISION_PACKAGES or (package.startswith("torchvision.models.") and package.count(".") <= 3):
        if name in ("get_model",):
            return _vision(_text(literal_args, "name", 0), literal_args)
        return _vision(name, literal_args)
    if path in ("timm.create_model", "timm.models.create_model", "timm.models.factory.create_model"):
        return _timm(_text(literal_args, "model_name", 0), literal_args)
    if package.startswith("timm.models."):
        return _timm(name, literal_args)
    if package.startswith("segmentation_models_pytorch") and name in _SMP:
        return _segmentation(literal_args)
    if path == "segmentation_models_pytorch.create_model":
        arch = _text(literal_args, "arch", 0)
        known = {item.lower() for item in _SMP}
        return _segmentation(literal_args) if arch is not None and arch.lower() in known else None
    if path == "torch.hub.load":
        repository = _text(literal_args, "repo_or_dir", 0)
        if repository is not None and repository.partition(":")[0] == "pytorch/vision":
            return _vision(_text(literal_args, "model", 1), literal_args)
        return None
    if path in (
        "mmcv.cnn.build_norm_layer",
        "mmcv.cnn.bricks.build_norm_layer",
        "mmcv.cnn.bricks.norm.build_norm_layer",
    ):
        config = literal_args.get("cfg", literal_args.get(0))
        kind = config.get("type") if isinstance(config, dict) else None
        return _norm_name(kind)
    if path in ("detectron2.layers.get_norm", "detectron2.layers.batch_norm.get_norm"):
        return _norm_name(literal_args.get("norm", literal_args.get(0)))
    return None


def _norm_name(kind: object) -> bool | None:
    if not isinstance(kind, str):
        return None
    if kind in ("BN", "BN1d", "BN2d", "BN3d", "SyncBN", "MMSyncBN", "naiveSyncBN", "nnSyncBN"):
        return True
    return False if kind in ("GN", "LN", "LN2d", "IN", "IN1d", "IN2d", "IN3d", "FrozenBN", "") else None


def _given(literal_args: dict[str | int, object], keyword: str, position: int) -> bool:
    return keyword in literal_args or position in literal_args


def _text(literal_args: dict[str | int, object], keyword: str, position: int) -> str | None:
    value = literal_args.get(keyword, literal_args.get(position))
    return value if isinstance(value, str) else None


def _vision(name: str | None, literal_args: dict[str | int, object]) -> bool | None:
    """A torchvision model; the caller's own norm_layer makes it unknown."""
    if name is None or "norm_layer" in literal_args:
        return None
    if re.fullmatch(_VISION_FROZEN_IF_TRAINED, name):
        weights = literal_args.get("weights")
        backbone = literal_args.get("weights_backbone", _MISSING)
        if any(old in literal_args for old in ("pretrained", "pretrained_backbone")):
            return None
        if weights is Ellipsis or backbone is Ellipsis:
            return None
        return weights is None and backbone is None
    if re.fullmatch(_VISION_WITH, name):
        return True
    return False if re.fullmatch(_VISION_WITHOUT, name) else None


def _timm(name: str | None, literal_args: dict[str | int, object]) -> bool | None:
    """A timm model by its name, with the pretrained tag ("resnet50.a1_in1k") taken off."""
    if name is None or "norm_layer" in literal_args:
        return None
    name = name.removeprefix("hf-hub:timm/").removeprefix("hf_hub:timm/").partition(".")[0]
    if re.search(r"(_|^)(gn|evos|filterresponse|frozen)", name) or "resnetv2" in name or name.endswith("ts"):
        return None  # other normalisation layers, by name
    if re.fullmatch(_TIMM_WITH, name):
        return True
    return False if re.fullmatch(_TIMM_WITHOUT, name) else None


def _segmentation(literal_args: dict[str | int, object]) -> bool | None:
    """A segmentation_models_pytorch model: the decoder has BatchNorm unless the caller says otherwise."""
    for keyword, usual in (("decoder_use_norm", ("batchnorm", True)), ("decoder_use_batchnorm", (True,))):
        if keyword in literal_args and literal_args[keyword] not in usual:
            return None
    return True
