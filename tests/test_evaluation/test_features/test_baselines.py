import pytest
import torch

from mm_sop.evaluation.features.baselines import color_histogram, encode_without_network, raw_pixels


@pytest.fixture
def images():
    return torch.randint(256, (3, 3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_raw_pixels_are_cell_means_without_the_mean_color(images):
    features = raw_pixels(images, size=4).view(3, 3, 4, 4).double()
    for image, feature in zip(images.double(), features, strict=True):
        for channel, small in zip(image, feature, strict=True):
            for row in range(4):
                for column in range(4):
                    cell = channel[6 * row : 6 * row + 6, 8 * column : 8 * column + 8]
                    assert float(small[row, column]) == pytest.approx(float(cell.mean() - channel.mean()), abs=1e-4)


def test_histogram_counts_the_center(images):
    features = color_histogram(images)
    for image, feature in zip(images.tolist(), features, strict=True):
        expected = torch.zeros(4, 4, 4)
        for y in range(6, 18):
            for x in range(8, 24):
                first, second, third = (image[channel][y][x] // 64 for channel in range(3))
                expected[third, second, first] += 1 / (12 * 16)
        torch.testing.assert_close(feature, expected.flatten())


def test_border_does_not_count_in_the_histogram(images):
    changed = images.clone()
    changed[..., :6, :] = 0
    changed[..., 24:] = 255
    assert torch.equal(color_histogram(changed), color_histogram(images))


def test_batch_gives_both(images):
    features = encode_without_network(dict(inputs=images))
    assert features['raw_pixels'].shape == (3, 768) and features['color_histogram'].shape == (3, 64)
