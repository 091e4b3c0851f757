"""An accelerator that does not exist: runs code for a GPU on any machine, without computing anything on the device.

Tensors on the device have shapes and types only; tensors on the host are real. So a training step of full size shows
within seconds what it would meet on a GPU: operations that mix devices, places where the host waits for the device,
float64 on the device, and the memory and operations it needs.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from types import FrameType
from typing import Any
from unittest import mock

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.flop_counter import flop_registry

NAME = 'gpu'
"""Device type."""

_aten = torch.ops.aten

# Operators that autocast runs in 16 and in 32 bits: those of CUDA's lists that training uses.
_LOW_PRECISION = ['conv1d', 'conv2d', 'conv_transpose2d.input', 'linear', 'matmul', 'mm', 'addmm', 'bmm', 'baddbmm']
_FULL_PRECISION = [
    'exp',
    'log',
    'pow.Tensor_Scalar',
    'pow.Tensor_Tensor',
    'softmax.int',
    'log_softmax.int',
    'layer_norm',
    'group_norm',
    'norm.Scalar',
    'norm.ScalarOpt_dim',
    'nll_loss',
    'cumsum',
    'cdist',
]

# Their results have sizes that the host must know.
_DATA_DEPENDENT = {
    'nonzero', 'masked_select', '_unique', '_unique2', 'unique_consecutive', 'unique_dim', 'bincount'
}  # fmt: skip
# They read the device in CUDA's implementation.
_WAITING = {'multinomial', '_linalg_check_errors', 'equal', 'allclose'}
_INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index', '_unsafe_index_put'}


class FakeDevice(TorchDispatchMode):
    """Context in which the device ``'gpu:0'`` exists, and which records what happens on it.

    Where the host reads a value of the device, it gets a made-up one (1, or half of the rows of a mask) and goes on.
    The device type stays registered with PyTorch until the process ends, and ``torch.accelerator`` then finds it: use a
    process of its own.

    Attributes:
        operations: Operations on the device by name, without views: about the launches of kernels.
        waits: Times the host waits for the device, by place and reason: ``.item()``, ``if tensor:``, indexing with
            masks, copies to the host, and copies from the host without ``non_blocking=True``.
        uploads: Copies from the host, by place.
        float64: Operations with results in float64 on the device, by place.
        flops: Floating-point operations of matrix products, convolutions and attention.
        memory: Bytes of the tensors on the device that are alive.
        peak_memory: The most of them since :meth:`reset`. A real allocator needs a little more.

    Raises:
        torch._subclasses.fake_tensor.FakeTensorDeviceMismatchError: An operation mixes devices.

    Example:
        >>> def one_step():
        ...     with FakeDevice() as device:
        ...         network = device.move(nn.Linear(8, 2))
        ...         network(torch.ones(4, 8, device='gpu')).sum().backward()
        ...         return device.flops, device.waits
    """

    def __init__(self) -> None:
        super().__init__()
        _register()
        self.device = torch.device(NAME, 0)
        self.memory = 0
        self._storages: dict[int, weakref.ref] = {}
        self._fake = _OneMode()
        self._stack = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Forget what has happened so far; tensors stay."""
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.float64: Counter[str] = Counter()
        self.flops = 0
        self.peak_memory = self.memory

    def __enter__(self) -> 'FakeDevice':
        # MMEngine chooses its device once, at import; the device has no random generators.
        self._stack.enter_context(mock.patch('mmengine.device.utils.DEVICE', NAME))
        self._stack.enter_context(mock.patch('torch.Generator', _HostGenerator))
        self._stack.enter_context(mock.patch('torch.clear_autocast_cache', _clear_casts))
        # Tensors made of numbers become tensors of the host first, and their copy is seen here.
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._stack.close()

    def empty(self, like: Tensor) -> Tensor:
        """Create a tensor of the device with shape, strides and type of another one, which may be on ``'meta'``."""
        meta = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device='meta')
        return self._track(FakeTensor(self._fake, meta, self.device))

    def move(self, module: nn.Module) -> nn.Module:
        """Move a module to the device in place and return it; shared tensors stay shared."""
        twins: dict[int, Tensor] = {}
        for child in module.modules():
            for tensors in (child._parameters, child._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in twins:
                        twin = self.empty(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
                    tensors[name] = twins[id(tensor)]  # type: ignore[assignment]  # a parameter among parameters
            if isinstance(child, BaseDataPreprocessor):
                child._device = self.device
        return module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        tensors = list(_tensors((args, kwargs.values()) if kwargs else args))
        on_device = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        target = kwargs.get('device')
        to_device = target is not None and torch.device(target).type == NAME
        if not on_device and not to_device:
            return func(*args, **kwargs)
        name = func._opname
        if on_device and name in ('_local_scalar_dense', '_to_copy', 'copy_', *_WAITING):
            arrived = self._download(name, args, kwargs)
            if arrived is not None:
                return arrived
        self.operations[name] += not _is_view(func)
        uploaded = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        if uploaded:
            self._record_upload(name, uploaded, args, kwargs)
            args, kwargs = self._to_fake(args), self._to_fake(kwargs)
        if name in _INDEXING:
            args = self._index_by_rows(name, args)
        if kwargs.get('generator') is not None:
            kwargs = dict(kwargs, generator=None)
        if name in _DATA_DEPENDENT:
            self._wait(name)
            result = self._assume(name, args)
        else:
            result = self._fake.dispatch(func, types, args, kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        for tensor in _tensors((result,)):
            self._track(tensor)
            if name == 'scalar_tensor':
                tensor.is_number = True  # type: ignore[attr-defined]  # read above
            if tensor.dtype is torch.float64:
                self.float64[f'{_place()}: {name}'] += 1
        return result

    def _download(self, name: str, args: Any, kwargs: dict) -> Any:
        """What the host reads if the operation brings something to it, and None otherwise."""
        tensor = args[0]
        if name == '_local_scalar_dense':
            self._wait('reads a value')
            return torch.ones((), dtype=tensor.dtype).item()
        if name in ('equal', 'allclose'):
            self._wait(name)
            return True
        if name in _WAITING:
            self._wait(name)
            return None
        if name == '_to_copy':
            target = kwargs.get('device')
            if target is None or torch.device(target).type != 'cpu':
                return None
            self._wait('copy to the host')
            return torch.ones(tensor.shape, dtype=kwargs.get('dtype') or tensor.dtype)
        if isinstance(tensor, FakeTensor):
            return None
        self._wait('copy to the host')
        return tensor.fill_(1)

    def _record_upload(self, name: str, tensors: list[Tensor], args: Any, kwargs: dict) -> None:
        copies = name in ('_to_copy', 'copy_')
        # Operations take numbers in tensors without axes as arguments.
        if not copies and all(tensor.dim() == 0 for tensor in tensors):
            return
        self.uploads[_place()] += 1
        non_blocking = kwargs.get('non_blocking') or (name == 'copy_' and len(args) > 2 and args[2])
        if not non_blocking:
            self._wait('copy from the host that blocks')

    def _index_by_rows(self, name: str, args: Any) -> Any:
        """Replace masks among the indices by assumed rows, for which the host would wait."""
        tensor, indices, *rest = args
        masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
        # A number goes into the masked elements without a wait.
        if not masks or (rest and getattr(rest[0], 'is_number', False) and len(masks) == len(indices)):
            return args
        self._wait('indexing with a mask')
        rows: list[Any] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                rows.append(index)
            else:
                rows.extend(self._assume('nonzero', (index,)).unbind(1))
        if rest and rest[0].dim() and rest[0].shape[0] not in (1, rows[0].shape[0]):
            return (tensor, indices, rest[0].sum(), *rest[1:])
        return (tensor, rows, *rest)

    def _assume(self, name: str, args: Any) -> Any:
        """Results of a size that depends on data: half of the elements, at least one."""
        tensor = args[0]
        count = max(1, tensor.numel() // 2) if tensor.numel() else 0
        with self._fake:
            rows = torch.empty(count, dtype=torch.int64, device=self.device)
            if name == 'nonzero':
                return rows.new_empty(count, tensor.dim())
            if name == 'bincount':
                return rows
            if name == 'masked_select':
                return tensor.new_empty(count)
            axis = args[1] if name == 'unique_dim' else None
            shape = [count] if axis is None else [*tensor.shape[:axis], count, *tensor.shape[axis + 1 :]]
            inverse = rows.new_empty(tensor.shape if axis is None else tensor.shape[axis])
            return (tensor.new_empty(shape), inverse) + (() if name == '_unique' else (rows,))

    def _track(self, tensor: Tensor) -> Tensor:
        """Count the memory of a new tensor until its storage is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = storage.nbytes()

            def free(_: Any) -> None:
                self.memory -= size
                self._storages.pop(key, None)

            self._storages[key] = weakref.ref(storage, free)
            self.memory += size
            self.peak_memory = max(self.peak_memory, self.memory)
        return tensor

    def _wait(self, reason: str) -> None:
        self.waits[f'{_place()}: {reason}'] += 1

    def _to_fake(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if isinstance(value, FakeTensor) else self._fake.from_tensor(value)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._to_fake, value))
        if isinstance(value, dict):
            return {key: self._to_fake(item) for key, item in value.items()}
        return value


class _OneMode(FakeTensorMode):
    """Copies of a tensor belong to the same mode."""

    def __deepcopy__(self, memo: dict) -> '_OneMode':
        return self


class _HostGenerator(torch.Generator):
    """Generator on the host whatever device is asked for."""

    def __new__(cls, device: Any = 'cpu') -> '_HostGenerator':  # noqa: ARG004
        return super().__new__(cls)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)) or type(value).__name__ == 'dict_values':
            yield from _tensors(value)


def _place() -> str:
    """The innermost line of code outside of PyTorch, if the operation has not come from its backward pass."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and '/torch/' not in name and '<' not in name:
            return f'{name}:{frame.f_lineno}'
        frame = frame.f_back
    return 'backward pass'


@cache
def _is_view(func: Any) -> bool:
    """Whether an operator only gives other shapes and strides to its argument."""
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info]
    return func._opname == 'detach' or (bool(aliases) and not any(alias.is_write for alias in aliases))


@cache
def _register() -> list[torch.library.Library]:
    """Make the device type known to PyTorch, with autocast and fused attention as on CUDA."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    others, operators = torch.library.Library('_', 'IMPL'), torch.library.Library('aten', 'IMPL')
    others.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    for names, low in ((_LOW_PRECISION, True), (_FULL_PRECISION, False)):
        for name in names:
            operators.impl(name, _autocast_kernel(name, low), 'AutocastPrivateUse1')
    for key in ('PrivateUse1', 'AutogradPrivateUse1'):
        operators.impl('scaled_dot_product_attention', _attention, key)
    low_precision_attention = _autocast_kernel('scaled_dot_product_attention', low=True)
    operators.impl('scaled_dot_product_attention', low_precision_attention, 'AutocastPrivateUse1')
    return [others, operators]  # Unregistered when they are deleted.


def _autocast_kernel(name: str, low: bool) -> Callable:
    packet, overload = (*name.split('.'), 'default')[:2]
    operator = getattr(getattr(_aten, packet), overload)
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, 'AutocastPrivateUse1'))  # noqa: B009  # not in the stubs

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value)(map(convert, value)) if isinstance(value, (list, tuple)) else value
        dtype = torch.get_autocast_dtype(NAME) if low else torch.float32
        if value.dtype is dtype or not value.is_floating_point() or value.device.type != NAME:
            return value
        if not (low and value.is_leaf and value.requires_grad and torch.is_grad_enabled()):
            return value.to(dtype)
        # Weights are converted once, as on CUDA.
        if id(value) not in _casts:
            _casts[id(value)] = value.to(dtype)
        return _casts[id(value)]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operator(*convert(args), **{key: convert(value) for key, value in kwargs.items()})

    return kernel


_casts: dict[int, Tensor] = {}
_clear_real_casts = torch.clear_autocast_cache


def _clear_casts() -> None:
    _casts.clear()
    _clear_real_casts()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> Tensor:
    """Attention in the kernel that CUDA would choose, without the matrix of all weights."""
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]
