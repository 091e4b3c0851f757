"""Small computations on a device that does not exist, good ones and one with each kind of fault."""

import torch
from torch import nn


def good_step(device):
    """A step in bfloat16 whose memory and operations are known; and the same again."""
    network = device.move(nn.Sequential(nn.Linear(64, 32, bias=False), nn.GELU(), nn.Linear(32, 8, bias=False)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.randn(16, 64).to('gpu', non_blocking=True)
    device.reset()
    with torch.autocast('gpu', torch.bfloat16):
        outputs = network(images)
    outputs.float().square().mean().backward()
    optimizer.step()
    gradients = {str(parameter.grad.device) for parameter in network.parameters()}
    weights = sum(parameter.numel() for parameter in network.parameters())
    return str(outputs.dtype), gradients, weights, device.memory, device.peak_memory


def memory_of_tensors(device):
    first = torch.zeros(1000, device='gpu')
    half = first[:500].view(2, 250)
    second = torch.zeros(250, device='gpu', dtype=torch.float64)
    alive = device.memory
    del first, second
    of_the_view = device.memory
    del half
    return alive, of_the_view, device.memory, device.peak_memory


def mixed(device):
    return torch.ones(4, device='gpu') + torch.ones(4)


def faulty(device, fault):
    values = torch.ones(4, 4, device='gpu')
    if fault == 'item':
        values.sum().item()
    elif fault == 'condition':
        assert values.sum() > 0
    elif fault == 'mask':
        values[values > 0].sum()
    elif fault == 'assignment':
        values[values > 0] = torch.ones(4, device='gpu')[:1]
    elif fault == 'download':
        values.cpu()
    elif fault == 'upload':
        torch.ones(4).to('gpu')
    elif fault == 'list':
        values[[0, 1]]
    elif fault == 'numbers':
        torch.tensor([1.0, 2.0], device='gpu')
    elif fault == 'multinomial':
        values.multinomial(2)
    elif fault == 'float64':
        device.move(nn.BatchNorm1d(4).double())(values.double())


def harmless(device):
    """What looks like a wait and is none."""
    values = torch.ones(4, 4, device='gpu')
    values[values > 0] = 1.0
    values[torch.arange(2, device='gpu')] *= torch.tensor(2.0)
    torch.randn(4, device='gpu', generator=torch.Generator('gpu').manual_seed(0))
    torch.ones(4).to('gpu', non_blocking=True)
    torch.ones(4).sum().item()
