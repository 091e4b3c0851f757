"""Optimiser wrapper for pretraining."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.amp import GradScaler

_DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


@OPTIM_WRAPPERS.register_module()
class PretrainOptimWrapper(OptimWrapper):
    """Mixed precision on any device, clipping per tensor, and no waiting for the device.

    Args:
        dtype: Type of the autocast regions: ``'float32'`` (no autocast), ``'bfloat16'``, or ``'float16'`` with
            loss scaling, which needs CUDA.
        clip: ``dict(type='per_tensor', max_norm=3.0)``, each gradient on its own as DINO, iBOT and SOP do, or
            ``dict(type='global_norm', max_norm=3.0)``. None does not clip.
        check_finite_interval: Optimiser steps between two looks at whether all gradients have been finite.
        **kwargs: Arguments of :class:`mmengine.optim.OptimWrapper`, such as ``optimizer`` and ``accumulative_counts``.

    Raises:
        ValueError: If ``dtype`` or ``clip`` is not one of the above.
    """

    def __init__(
        self, *args, dtype: str = 'float32', clip: dict | None = None, check_finite_interval: int = 50, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        if dtype not in _DTYPES:
            raise ValueError(f'dtype must be one of {", ".join(_DTYPES)}, got {dtype!r}')
        if dtype == 'float16' and not torch.cuda.is_available():
            raise ValueError("dtype='float16' needs CUDA: use 'bfloat16' here")
        if clip is not None and clip.get('type') not in ('per_tensor', 'global_norm'):
            raise ValueError(f"clip needs type 'per_tensor' or 'global_norm' and max_norm, got {clip}")
        self.dtype = _DTYPES[dtype]
        self.clip = clip
        self.check_finite_interval = check_finite_interval
        self.scaler = GradScaler('cuda') if dtype == 'float16' else None
        self.gradient_norm: Tensor | None = None
        self._num_steps = 0
        self._all_finite: Tensor | None = None

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast, and no exchange of gradients between the steps of an accumulation."""
        device = next(model.parameters()).device.type
        enabled = self.dtype is not torch.float32
        with super().optim_context(model), torch.autocast(device, self.dtype, enabled=enabled):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backpropagate the, for fp16 scaled, loss."""
        super().backward(loss if self.scaler is None else self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Clip and update the parameters."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self._clip_gradients()
        if self.scaler is None:
            self.optimizer.step(**kwargs)
        else:
            self.scaler.step(self.optimizer, **kwargs)
            self.scaler.update()

    def state_dict(self) -> dict:
        """State of the optimiser, and of the loss scaler if there is one."""
        state = super().state_dict()
        if self.scaler is not None:
            state['loss_scaler'] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`state_dict` gave."""
        state_dict = dict(state_dict)
        scaler_state = state_dict.pop('loss_scaler', None)
        if self.scaler is not None and scaler_state is not None:
            self.scaler.load_state_dict(scaler_state)
        super().load_state_dict(state_dict)

    def _clip_gradients(self) -> None:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        if not gradients:
            return
        norms = torch.stack(torch._foreach_norm(gradients))
        self.gradient_norm = norms.norm()
        self._check_finite(self.gradient_norm)
        if self.clip is None:
            return
        reference = norms if self.clip['type'] == 'per_tensor' else self.gradient_norm.expand(len(norms))
        factors = (self.clip['max_norm'] / (reference + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))

    def _check_finite(self, norm: Tensor) -> None:
        """Stop a run whose gradients are lost; loss scaling handles its own overflows."""
        if self.scaler is not None:
            return
        finite = torch.isfinite(norm)
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite
        self._num_steps += 1
        if self._num_steps % self.check_finite_interval == 0:
            if not self._all_finite:
                raise FloatingPointError(
                    f'a gradient was not finite in the last {self.check_finite_interval} optimiser steps. The newest '
                    'checkpoint may already be affected, the one before it is safe. Try a lower learning rate, a '
                    'longer warm-up, tighter clipping or dtype float32'
                )
            self._all_finite = None
