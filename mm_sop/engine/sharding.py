"""Shards parameters, gradients and optimizer states over the processes of a run (FSDP2)."""

from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from mm_sop.utils.modules import match_modules, unwrap_model


def shard_parameters(model: nn.Module, options: dict | bool) -> None:
    """Shard the parameters of student and teacher in place over all processes.

    The parameters of a block are gathered while the block computes, those outside of the blocks during the whole
    forward pass of the model. Buffers, such as memory banks, are replicated.

    Args:
        model: A model on the device where it is trained, with initial weights, the same on all processes.
        options: The ``pattern`` of the blocks' names, ``'backbone.layers.*'`` by default, and whether to
            ``reshard_after_forward`` (True), which frees a block's parameters until its backward pass; True for the
            defaults.

    Raises:
        ValueError: An option is unknown, no module has such a name, or the model contains an averaged model of
            MMEngine, whose update needs whole parameters.
    """
    options = dict(options) if isinstance(options, dict) else {}
    pattern = options.pop('pattern', 'backbone.layers.*')
    reshard = options.pop('reshard_after_forward', True)
    if options:
        raise ValueError(f'shard_parameters: unknown {", ".join(options)}; expected pattern, reshard_after_forward')
    averaged = [type(module).__name__ for module in model.modules() if isinstance(module, BaseAveragedModel)]
    if averaged:
        raise ValueError(
            f'shard_parameters: {type(model).__name__} updates its {averaged[0]} within the forward pass, which needs '
            'whole parameters: leave shard_parameters out'
        )
    mesh = init_device_mesh(get_device(), (get_world_size(),))
    for block in match_modules(model, [pattern, f'teacher.{pattern}'], 'shard_parameters.pattern').values():
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    # Hooks that evaluate end without a backward pass, which would otherwise shard these parameters again.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    if hasattr(model, 'extract_feat'):
        register_fsdp_forward_method(model, 'extract_feat')


def gather_shards(tree: Any) -> Any:
    """Replace the sharded tensors in nested dicts and lists by whole ones on the host, None on other processes.

    All processes have to call it. One tensor at a time is on the device.
    """

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        whole = leaf.full_tensor()
        return whole.cpu() if is_main_process() else None

    return tree_map(gather, tree)


def whole_model(runner: Runner) -> nn.Module | None:
    """The network of a run as one process can evaluate it; all processes have to call it.

    Returns:
        The network itself, or on the main process a copy if it is sharded, which the others do not get.
    """
    model = unwrap_model(runner.model)
    if not isinstance(model, FSDPModule):
        return model
    state = gather_shards(model.state_dict())
    if not is_main_process():
        return None
    copy = MODELS.build(runner.cfg.model)
    copy.load_state_dict(state)
    return copy.to(get_device())


class ShardedCheckpointHook(Hook):
    """Keeps checkpoints of a sharded run in the ordinary format: whole tensors, for any number of processes.

    :meth:`gather` is to be called on all processes before the main process saves.
    """

    # Converts what the hook for checkpoints has checked and adapted.
    priority = 'LOWEST'

    def gather(self, runner: Runner) -> None:
        states = dict(state_dict=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict())
        self.whole = gather_shards(states)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace the shards of the main process by whole tensors."""
        checkpoint.update({key: value for key, value in self.whole.items() if key in checkpoint})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the shards of this process."""
        expected = runner.model.state_dict()
        state = checkpoint['state_dict']
        checkpoint['state_dict'] = {name: _shard_like(value, expected.get(name)) for name, value in state.items()}
        groups = runner.optim_wrapper.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group['params']]
        for index, values in checkpoint.get('optimizer', {}).get('state', {}).items():
            values.update({key: _shard_like(value, parameters[index]) for key, value in values.items()})


def _shard_like(value: Any, target: Tensor | None) -> Any:
    if not (isinstance(target, DTensor) and isinstance(value, Tensor) and value.shape == target.shape):
        return value
    # Every process has the whole tensor: nothing is sent.
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
