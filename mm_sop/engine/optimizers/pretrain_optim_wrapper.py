"""Optimizer wrapper for pretraining on any device."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from mm_sop.utils.distributed import norms_of, own_shards
from mm_sop.utils.failures import UserError

_DTYPES = dict(float32=None, bfloat16=torch.bfloat16, float16=torch.float16)


@torch.no_grad()
def clip_per_tensor(grads: list[Tensor], max_norm: float) -> Tensor:
    """Limit the L2 norm of every gradient separately, in place, as DINO, iBOT and SOP do.

    Returns the joint L2 norm of all gradients before clipping, a scalar on the device.
    """
    norms = norms_of(grads)
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(own_shards(grads), list(scales.unbind()))
    return norms.norm()


@torch.no_grad()
def clip_global_norm(grads: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their joint L2 norm is limited, in place.

    Returns that norm before clipping, a scalar on the device.
    """
    norm = norms_of(grads).norm()
    torch._foreach_mul_(own_shards(grads), (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


CLIPPING = dict(per_tensor=clip_per_tensor, global_norm=clip_global_norm)


class NonFiniteLossError(UserError, RuntimeError):
    """Loss or gradients are NaN or infinite."""


@OPTIM_WRAPPERS.register_module()
class PretrainOptimWrapper(OptimWrapper):
    """Mixed precision, clipping and a check for NaN and infinity that never make the host wait for the device.

    Parameters and optimizer states stay float32; ``dtype`` is that of the autocast around the forward pass.

    Attributes:
        grad_norm (Tensor, optional): Joint norm of the gradients of the last optimizer step before clipping, a scalar;
            None in iterations that only accumulate.

    Args:
        optimizer (Optimizer): The optimizer.
        dtype (str): ``'float32'``, ``'bfloat16'`` or, on CUDA and with loss scaling, ``'float16'``.
            Defaults to ``'float32'``.
        clip (dict, optional): ``type``, ``'per_tensor'`` (every gradient by itself, as SOP) or ``'global_norm'``,
            and ``max_norm``, 3.0 unless given. Defaults to None, no clipping.
        check_finite_interval (int): Iterations between checks of the losses and gradient norms for NaN and infinity;
            0 for never. Defaults to 50.
        accumulative_counts (int): Iterations whose gradients are accumulated into one step. Defaults to 1.

    Raises:
        ValueError: An argument has an unknown value, or float16 is asked for without CUDA.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        dtype: str = 'float32',
        clip: dict | None = None,
        check_finite_interval: int = 50,
        accumulative_counts: int = 1,
    ) -> None:
        if accumulative_counts < 1:
            raise ValueError(f'accumulative_counts must be at least 1, got {accumulative_counts}')
        super().__init__(optimizer, accumulative_counts)
        self.device = get_device()
        if dtype not in _DTYPES:
            raise ValueError(f'optim_wrapper.dtype must be one of {", ".join(_DTYPES)}, got {dtype!r}')
        if dtype == 'float16' and self.device == 'cpu':
            raise ValueError("optim_wrapper.dtype='float16' needs a CUDA device: use 'bfloat16' or 'float32'")
        self.dtype = _DTYPES[dtype]
        options = dict(clip or {})
        kind, self.max_norm = options.pop('type', 'per_tensor'), options.pop('max_norm', 3.0)
        if kind not in CLIPPING or self.max_norm <= 0 or options:
            raise ValueError(
                f"optim_wrapper.clip must be dict(type='per_tensor' | 'global_norm', max_norm > 0), got {clip}"
            )
        self.clip = None if clip is None else CLIPPING[kind]
        self.check_finite_interval = check_finite_interval
        self.loss_scaler = torch.amp.GradScaler(self.device) if self.dtype is torch.float16 else None
        self.grad_norm: Tensor | None = None
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enable autocast, and skip the exchange of gradients in iterations that only accumulate."""
        precision = nullcontext() if self.dtype is None else torch.autocast(self.device, self.dtype)
        with super().optim_context(model), precision:
            yield

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Back-propagate, make an optimizer step if it is due, and record the loss.

        Raises:
            NonFiniteLossError: A loss or gradient since the last check was not finite.
        """
        self.grad_norm = None
        super().update_params(loss, step_kwargs, zero_kwargs)
        if not self.check_finite_interval:
            return
        # With loss scaling, infinite gradients are normal: the step is skipped.
        norm = self.grad_norm if self.loss_scaler is None else None
        loss = loss.detach()
        self._unchecked.append((self._inner_count, loss, loss if norm is None else norm))
        if self._inner_count % self.check_finite_interval == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Copy all losses and gradient norms since the last check to the host, and check them.

        Raises:
            NonFiniteLossError: One of them is NaN or infinite.
        """
        if not self._unchecked:
            return
        iterations, *columns = zip(*self._unchecked, strict=True)
        self._unchecked = []
        losses, norms = torch.stack([value.float() for column in columns for value in column]).view(2, -1).tolist()
        for index, iteration in enumerate(iterations):
            if math.isfinite(losses[index]) and math.isfinite(norms[index]):
                continue
            shown = ', '.join(f'{loss:.5g}' for loss in losses[max(0, index - 4) : index + 1])
            what = 'the loss' if not math.isfinite(losses[index]) else f'the gradient norm ({norms[index]})'
            saved = self.message_hub.get_info('last_ckpt')
            resume = f'go on from {saved} with --resume' if saved else 'start again, no checkpoint was saved yet,'
            raise NonFiniteLossError(
                f'iteration {iteration}: {what} is not finite; losses up to there: {shown}. To recover, {resume} and a '
                "lower learning rate, a longer warm-up, clip=dict(type='per_tensor', max_norm=1.0) or dtype='float32'"
            )

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Back-propagate, with loss scaling in float16."""
        super().backward(loss if self.loss_scaler is None else self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        if self.loss_scaler is not None:
            self.loss_scaler.unscale_(self.optimizer)
        if self.clip is not None:
            parameters = (parameter for group in self.optimizer.param_groups for parameter in group['params'])
            grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if grads:
                self.grad_norm = self.clip(grads, self.max_norm)
        if self.loss_scaler is None:
            self.optimizer.step(**kwargs)
        else:
            self.loss_scaler.step(self.optimizer, **kwargs)
            self.loss_scaler.update()

    def state_dict(self) -> dict:
        """State of the optimizer, and of the loss scaler in float16."""
        state = super().state_dict()
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state; that of the loss scaler is ignored if ``dtype`` has changed."""
        state_dict = dict(state_dict)
        scaler_state = state_dict.pop('loss_scaler', None)
        if self.loss_scaler is not None and scaler_state is not None:
            self.loss_scaler.load_state_dict(scaler_state)
        super().load_state_dict(state_dict)


def accumulation_of(optim_wrapper: OptimWrapper) -> int:
    """Iterations per optimizer step; MMEngine has no public attribute for it."""
    return optim_wrapper._accumulative_counts
