import torch
from mmpretrain.models import ResNet_CIFAR

from mm_sop.models import PaddedResNetCIFAR


def test_margin_of_zeros_and_nothing_else():
    torch.manual_seed(0)
    padded = PaddedResNetCIFAR(18, base_channels=4, stem_channels=4, out_indices=(0, 1, 2, 3))
    plain = ResNet_CIFAR(18, base_channels=4, stem_channels=4, out_indices=(0, 1, 2, 3))
    padded.eval()
    plain.eval()
    plain.load_state_dict(padded.state_dict())
    images = torch.randn(2, 3, 32, 32)
    framed = torch.zeros(2, 3, 34, 34)
    framed[:, :, 1:-1, 1:-1] = images
    maps = padded(images)
    assert [each.shape[-1] for each in maps] == [34, 17, 9, 5]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, plain(framed), strict=True))
