"""Probes of an activation: of all of it, of k units, and what a share of detected labels is worth."""

import torch

from utils import probes, saes


def test_probe_finds_what_no_unit_holds_alone():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2000, 30, generator=generator)
    labels = x @ torch.randn(30, 3, generator=generator) > 3
    logits = probes.probe_scores(x, labels)
    assert not logits.requires_grad
    assert saes.best_units(logits, labels)[1].min() > 0.9 > 0.7 > saes.best_units(x, labels)[1].max()
    # On the half that it has not seen, a probe of labels that mean nothing knows nothing.
    noise = torch.rand(2000, 3, generator=generator) < 0.3
    assert saes.best_units(probes.probe_scores(x, noise), noise)[1].max() < 0.6


def test_a_sparse_probe_reads_what_its_units_hold_together():
    generator = torch.Generator().manual_seed(6)
    values = torch.randn(3000, 20, generator=generator)
    labels = torch.stack([values[:, 3] - values[:, 11] > 1, values[:, 5] < -0.5], dim=1)
    units = probes.best_k_units(values, labels, 2)
    assert set(units[0].tolist()) == {3, 11} and units[1, 0] == 5
    for k, low, high in ((1, 0, 0.5), (2, 1, 1)):
        scores = probes.k_sparse_scores(values, labels, probes.best_k_units(values, labels, k))
        assert not scores.requires_grad
        assert low <= probes.share_detected(scores, labels, 100)[0] <= high
    # All units, in any order, are the probe of all.
    everything = torch.stack([torch.randperm(20, generator=generator) for _ in range(2)])
    whole = probes.probe_scores(values, labels)
    assert torch.allclose(probes.k_sparse_scores(values, labels, everything), whole, rtol=0.05, atol=0.5)


def test_the_interval_of_a_share_covers_other_text_and_other_labels():
    def share(seed, labels=30):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.rand(2000, labels, generator=generator) < 0.2
        errors = torch.linspace(0, 0.2, labels)  # the F1 of some labels lies near 0.8
        wrong = torch.rand(2000, labels, generator=generator) < errors
        return probes.share_detected((truth ^ wrong).float(), truth, 50)

    value, low, high = share(0)
    assert low < value < high and high - low > 0.2  # thirty labels
    assert sum(low <= share(seed)[0] <= high for seed in range(1, 21)) >= 18
    many = share(0, labels=600)
    assert many[2] - many[1] < (high - low) / 3


def test_a_table_of_tokens_and_sets_of_words():
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, 40, (4000,), generator=generator)
    labels = torch.stack([tokens % 5 == 0, torch.rand(4000, generator=generator) < 0.3], dim=1)
    share, *_ = probes.share_detected(probes.look_up_scores(tokens, labels), labels, 100)
    assert share == 0.5  # what is a matter of the token, and not what isn't
    sets = probes.sets_of_words(labels, tokens)
    for chosen, label in zip(sets.T, labels.T, strict=True):
        words = tokens[chosen].unique()
        assert torch.equal(chosen, torch.isin(tokens, words))  # all places of its words
        assert 0.8 * label.sum() < chosen.sum() <= label.sum()
    assert not torch.equal(sets, probes.sets_of_words(labels, tokens, seed=1))
