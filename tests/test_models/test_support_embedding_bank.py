import pytest
import torch
from torch.nn.functional import normalize

from mm_sop.models import SupportEmbeddingBank


def keys(count, start=0):
    return normalize(torch.arange(start, start + count).float().add(1).unsqueeze(1).expand(-1, 3) ** 0.5, dim=1) * (
        torch.arange(start, start + count).float().unsqueeze(1) + 1
    )


def test_starts_with_different_unit_rows():
    bank = SupportEmbeddingBank(50, 8)
    torch.testing.assert_close(bank.embeddings.norm(dim=1), torch.ones(50))
    assert (bank.embeddings @ bank.embeddings.T - torch.eye(50)).max() < 0.99


@pytest.mark.parametrize('batch', [1, 3, 7, 10])
def test_is_first_in_first_out_for_any_batch_size(batch):
    bank = SupportEmbeddingBank(10, 3)
    rows = [None] * 10
    position = 0
    for step in range(9):
        new = keys(batch, step * batch)
        bank.enqueue(new)
        for row in new:
            rows[position % 10] = row
            position += 1
        for row, expected in zip(bank.embeddings, rows, strict=True):
            if expected is not None:
                assert torch.equal(row, expected)
        assert int(bank.pointer) == position % 10


def test_continues_where_a_checkpoint_stopped(tmp_path):
    first, second = SupportEmbeddingBank(10, 3), SupportEmbeddingBank(10, 3)
    first.enqueue(keys(7))
    torch.save(first.state_dict(), tmp_path / 'bank.pth')
    second.load_state_dict(torch.load(tmp_path / 'bank.pth', weights_only=True))
    for bank in (first, second):
        bank.enqueue(keys(5, 20))
    assert torch.equal(first.embeddings, second.embeddings)
    assert int(second.pointer) == 2


def test_refuses_a_batch_larger_than_itself():
    with pytest.raises(ValueError, match='11 keys do not fit into a bank of 10 rows: lower the global batch size'):
        SupportEmbeddingBank(10, 3).enqueue(keys(11))
