"""The default reduction of loss functions, by dotted path."""

from __future__ import annotations

from functools import lru_cache

_NN = (
    "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss "
    "HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss "
    "TripletMarginWithDistanceLoss NLLLoss2d"
)
"""torch.nn 2.13.0, torch/nn/modules/loss.py: all have reduction='mean'. NLLLoss2d is its deprecated alias."""

_FUNCTIONAL = (
    "binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss "
    "gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss linear_cross_entropy margin_ranking_loss "
    "mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss "
    "smooth_l1_loss soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss"
)
"""torch.nn.functional 2.13.0, torch/nn/functional.py: all have reduction='mean'."""

_TORCH: dict[str, str] = {
    **{f"torch.nn.{name}": "mean" for name in _NN.split()},
    **{f"torch.nn.modules.loss.{name}": "mean" for name in _NN.split()},
    **{f"torch.nn.modules.{name}": "mean" for name in _NN.split()},
    **{f"torch.nn.functional.{name}": "mean" for name in _FUNCTIONAL.split()},
}

_THIRD_PARTY_MEAN: dict[str, str] = {
    "monai.losses": (
        "AUCMLoss AsymmetricFocalLoss AsymmetricFocalTverskyLoss AsymmetricUnifiedFocalLoss BendingEnergyLoss "
        "BoundaryLoss BoxGIoULoss Dice DiceCELoss DiceFocalLoss DiceLoss DiffusionLoss FocalLoss "
        "GeneralizedDiceFocalLoss GeneralizedDiceLoss GeneralizedWassersteinDiceLoss GlobalMutualInformationLoss "
        "HausdorffDTLoss JukeboxLoss LocalNormalizedCrossCorrelationLoss LogHausdorffDTLoss MCCLoss MaskedDiceLoss "
        "MultiScaleLoss PatchAdversarialLoss SSIMLoss SoftDiceclDiceLoss SoftclDiceLoss TverskyLoss dice_ce "
        "dice_focal generalized_dice generalized_dice_focal generalized_wasserstein_dice giou"
    ),
    "segmentation_models_pytorch.losses": (
        "DiceLoss FocalLoss JaccardLoss MCCLoss SoftBCEWithLogitsLoss SoftCrossEntropyLoss"
    ),
    "timm.loss": (
        "AsymmetricLossSingleLabel BinaryCrossEntropy DistributionBalancedLoss JsdCrossEntropy "
        "LabelSmoothingCrossEntropy PolyBinaryCrossEntropy PolyCrossEntropy SoftTargetCrossEntropy ZlprLoss"
    ),
    "kornia.losses": (
        "DiceLoss HausdorffERLoss HausdorffERLoss3D InverseDepthSmoothnessLoss MS_SSIMLoss SSIM3DLoss SSIMLoss "
        "TverskyLoss dice_loss inverse_depth_smoothness_loss js_div_loss_2d kl_div_loss_2d ssim3d_loss ssim_loss "
        "tversky_loss"
    ),
    "pytorch_metric_learning.losses": (
        "ArcFaceLoss CircleLoss ContrastiveLoss CosFaceLoss InstanceLoss MultiSimilarityLoss NTXentLoss "
        "NormalizedSoftmaxLoss SupConLoss TripletMarginLoss"
    ),
    "transformers.trainer_pt_utils": "LabelSmoother",
}
"""Losses that average over samples, pixels, tokens or pairs by default.

monai 1.6.1 monai/losses/*.py (reduction=LossReduction.MEAN); segmentation_models_pytorch 0.6.0 losses/*.py; timm 1.0.31
timm/loss/*.py (timm's AsymmetricLossMultiLabel is left out: a sum in older versions, 'batchmean' now); kornia 0.9.0
kornia/losses/*.py; pytorch_metric_learning 2.9.0 losses/*.py and reducers (MeanReducer, AvgNonZeroReducer);
transformers 5.24.0 trainer_pt_utils.py LabelSmoother (sum / active tokens, unless num_items_in_batch is given).
"""

_THIRD_PARTY_NONE: dict[str, str] = {
    "torchvision.ops": ("complete_box_iou_loss distance_box_iou_loss generalized_box_iou_loss sigmoid_focal_loss"),
    "kornia.losses": (
        "BinaryFocalLossWithLogits CauchyLoss CharbonnierLoss FocalLoss GemanMcclureLoss WelschLoss "
        "binary_focal_loss_with_logits cauchy_loss charbonnier_loss focal_loss geman_mcclure_loss welsch_loss"
    ),
}
"""torchvision 0.29.1 torchvision/ops/*_loss.py and kornia 0.9.0 kornia/losses/*.py: reduction='none'."""

_OTHER: dict[str, str] = {
    "torchvision.ops.focal_loss.sigmoid_focal_loss": "none",
    "torchvision.ops.giou_loss.generalized_box_iou_loss": "none",
    "torchvision.ops.diou_loss.distance_box_iou_loss": "none",
    "torchvision.ops.ciou_loss.complete_box_iou_loss": "none",
}


def _table() -> dict[str, str]:
    table = dict(_TORCH)
    for source, reduction in ((_THIRD_PARTY_MEAN, "mean"), (_THIRD_PARTY_NONE, "none")):
        for package, names in source.items():
            for name in names.split():
                table[f"{package}.{name}"] = reduction
    table.update(_OTHER)
    return table


_REDUCTIONS = _table()


@lru_cache(maxsize=8192)
def reduction_of(path: str) -> str | None:
    """The reduction of a loss class or function when no argument changes it: "mean", "sum", "none", or None (unknown).

    For a class it is the reduction of calling an instance. `reduction=`, `size_average=` and `reduce=` are for the
    caller to look at, with `reduction_from_arguments`.
    """
    known = _REDUCTIONS.get(path)
    if known is None:
        # A class imported from its own file: monai.losses.dice.DiceLoss is monai.losses.DiceLoss.
        parts = path.split(".")
        for package in ("monai.losses", "segmentation_models_pytorch.losses", "timm.loss", "kornia.losses"):
            if path.startswith(package + ".") and len(parts) == package.count(".") + 3:
                return _REDUCTIONS.get(f"{package}.{parts[-1]}")
        if path.startswith("pytorch_metric_learning.losses.") and len(parts) == 4:
            return _REDUCTIONS.get(f"pytorch_metric_learning.losses.{parts[-1]}")
    return known


def reduction_from_arguments(default: str | None, arguments: dict[str, object]) -> str | None:
    """The reduction after the literal keyword arguments `reduction`, `size_average` and `reduce` are applied.

    `arguments` holds the keywords given with a literal value; a keyword given with an unknown value is for the caller
    to treat as unknown. The deprecated pair decides as in torch/nn/_reduction.py (2.13.0): reduce=False is "none",
    size_average=False is "sum". 'batchmean' and 'batchwise_mean' are means too: over samples.
    """
    reduce = arguments.get("reduce")
    average = arguments.get("size_average")
    if reduce is not None or average is not None:
        if reduce is False:
            return "none"
        return "sum" if average is False else "mean"
    given = arguments.get("reduction", default)
    if given in ("mean", "batchmean", "elementwise_mean", "batchwise_mean"):
        return "mean"
    return given if given in ("sum", "none") else None
