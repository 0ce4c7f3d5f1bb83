"""Double descent: fixed datasets of several sizes side by side, saved and taken up again."""

import pytest
import torch

from utils import double_descent as dd


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_dataset_has_no_empty_point():
    data = dd.generate_dataset(500, 3, 0.05)
    assert data.norm(dim=1).allclose(torch.ones(500))
    with pytest.raises(ValueError, match="raise feature_probability"):
        dd.generate_dataset(5, 3, 0.0)


def test_a_padded_dataset_counts_only_its_own_points():
    short, long = dd.generate_dataset(3, 6, 0.4), dd.generate_dataset(9, 6, 0.4)
    both, alone = dd.FixedDataModel([short, long]), dd.FixedDataModel([short])
    with torch.no_grad():
        alone.W.copy_(both.W[:1])
        losses = [m.calculate_loss(m(m.generate_batch()), m.generate_batch())[0].item() for m in (both, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_double_descent_can_be_taken_up_again(tmp_path):
    options = dict(sizes=[3, 40], n_features=12, feature_probability=0.3, steps=20, n_test=30)
    state = torch.get_rng_state()
    first = dd.double_descent(**options)
    assert torch.equal(state, torch.get_rng_state())  # it has a seed of its own
    for _ in range(2):  # the second call finds everything done
        again = dd.double_descent(**options, folder=tmp_path)
        assert [(r.n_points, r.train_loss, r.test_loss) for r in again] == [
            (r.n_points, r.train_loss, r.test_loss) for r in first
        ]
    assert first[1].hidden.shape == (2, 40)


def test_groups_pad_little():
    groups = dd._groups([3, 5, 60, 100, 150, 500])
    assert groups == [[3, 5, 60], [100, 150], [500]]
