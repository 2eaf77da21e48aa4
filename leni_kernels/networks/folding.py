"""Whole networks in their inference form: batch norms folded, one operation per block."""

from __future__ import annotations

import torch
from torch import nn

from ..common.hooks import hooked, must_run
from ..common.lazy import Lazy
from ..leni.modules import FoldedLENI2d, LENI2d
from ..leni.reference import fold_leni
from ..reborn.modules import FoldedReborn2d, FoldedRebornFeatures2d, Reborn2d
from ..reborn.reference import fold_reborn, fold_reborn_features
from .examples import copied


def fold(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Turn each :class:`LENI2d` and :class:`Reborn2d` of a model into its folded inference form.

    Everything else is left alone, subclasses of the two and blocks of one and three dimensions included. A block used
    at several places stays one object. Norms are folded in float32 (float64 for float64 blocks) and the folded
    parameters keep that dtype and the block's device, whatever the dtype of the activations: a bfloat16 model is not
    rounded twice. A Reborn block whose compression is larger than 1×1 becomes two modules, its folded branches and the
    compression. Fold before ``torch.compile``. A batch norm after a convolution is PyTorch's to fold:
    ``torch.fx.experimental.optimization.fuse(folded)``.

    Args:
        model: in eval mode; may itself be a block.
        inplace: replace the blocks in ``model`` itself instead of in a deep copy.

    Returns:
        The folded model: ``model`` itself if ``inplace``, unless it is a block.

    Raises:
        ValueError: if the model or a block of it is in training mode or lazy, or if a block cannot be folded: it or a
            child of it has hooks (but for those that compute its tensors, as ``prune``'s do), a child was replaced by
            another kind of layer, or a norm has no running statistics. The message names the block, and the model is
            unchanged.
    """
    if model.training:
        raise ValueError(f"fold: the model ({type(model).__name__}) is in training mode; call eval() first")
    for name, module in model.named_modules():
        if isinstance(module, Lazy):
            raise ValueError(f"fold: '{name}' ({type(module).__name__}) has no parameters before its first call")
        if _is_block(module):
            _check_block(f"'{name}'" if name else "the model", module)
    if not inplace:
        model = copied(model)
    folded = {module: _folded(module) for module in model.modules() if _is_block(module)}
    for parent in list(model.modules()):
        # Not named_children(), which gives a child with two names only once.
        for name, child in list(parent._modules.items()):
            if child in folded:
                setattr(parent, name, folded[child])
    return folded.get(model, model)


def _is_block(module: nn.Module) -> bool:
    # A subclass may compute something else.
    return type(module) in (LENI2d, Reborn2d)


def _check_block(name: str, block: LENI2d | Reborn2d) -> None:
    where = f"fold: {name} ({type(block).__name__})"
    if any(module.training for module in (block, *block.children())):
        raise ValueError(f"{where} is in training mode; call eval() first")
    if hooked(block):
        raise ValueError(f"{where} has hooks, which its folded form would lose; remove them first")
    obstacle = block.obstacle()
    if obstacle is not None:
        cure = "; remove the hook first" if any(map(must_run, block.children())) else ""
        raise ValueError(f"{where} cannot be folded: {obstacle}{cure}")
    for norm_name, norm in block.named_children():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is None:
            raise ValueError(f"{where} cannot be folded: {norm_name} has no running statistics")


@torch.no_grad()
def _folded(block: LENI2d | Reborn2d) -> nn.Module:
    parameters = block.parameters_for_kernels()
    if isinstance(block, LENI2d):
        return FoldedLENI2d(fold_leni(*parameters)).eval()
    deconv_weight, norm, compress_weight, _, groups = parameters
    if compress_weight is not None and compress_weight.shape[-1] == 1:
        return FoldedReborn2d(fold_reborn(*parameters), groups).eval()
    # A larger compression pads the shifted channels with zeros, so that their shift cannot go into its bias.
    features = FoldedRebornFeatures2d(fold_reborn_features(deconv_weight, norm, groups), groups).eval()
    return features if block.compress is None else nn.Sequential(features, block.compress).eval()
