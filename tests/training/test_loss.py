"""The gradients that the loss makes by hand are those of autograd."""

import pytest
import torch

from training.model.loss import LossOptions, _HeadLoss, confidence_limit

K, WIDTH, VOCABULARY, NUM_EXIT = 11, 8, 13, 5


def about(weights, num_exits, options):
    seen = weights[:NUM_EXIT] / weights[:NUM_EXIT].sum() * options.exit_weight
    return [((seen / max(1, num_exits)).detach(), options.soft_share)] * num_exits


def reference(h, embedding, targets, weights, exits, options):
    logp = (h @ embedding.t()).log_softmax(-1)
    total = -(weights * logp[range(K), targets]).sum()
    teacher = logp.detach()[:NUM_EXIT].exp()
    seen = weights[:NUM_EXIT] / weights[:NUM_EXIT].sum()
    for x in exits:
        own = (x @ embedding.t()).log_softmax(-1)
        hard = -own[range(NUM_EXIT), targets[:NUM_EXIT]]
        soft = -(teacher * own).sum(-1)
        mixed = (1 - options.soft_share) * hard + options.soft_share * soft
        total = total + options.exit_weight / len(exits) * (seen * mixed).sum()
    return total


@pytest.mark.parametrize("num_exits", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("soft_share", [0.0, 0.7, 1.0])
def test_gradients_equal_autograd(num_exits, chunk, soft_share):
    torch.manual_seed(num_exits)
    options = LossOptions(NUM_EXIT, chunk, 0.6, soft_share)
    h, embedding = torch.randn(K, WIDTH), torch.randn(VOCABULARY, WIDTH)
    exits = [torch.randn(NUM_EXIT, WIDTH) for _ in range(num_exits)]
    targets, weights = torch.randint(VOCABULARY, (K,)), torch.rand(K)
    leaves = [t.requires_grad_() for t in (h, embedding, *exits)]
    more = about(weights, num_exits, options)
    loss, nll, stats = _HeadLoss.apply(options, h, embedding, targets, weights, more, *exits)
    loss.backward()
    found = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    wanted = reference(h, embedding, targets, weights, exits, options)
    wanted.backward()
    for leaf, mine in zip(leaves, found, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-4, atol=1e-5)
    logp = (h @ embedding.t()).log_softmax(-1)
    torch.testing.assert_close(nll, -logp[range(K), targets].detach())
    torch.testing.assert_close(loss, (nll * weights).sum())
    assert stats.shape == (num_exits, 2)


def test_exit_figures_are_its_loss_and_agreement():
    torch.manual_seed(1)
    h, embedding = torch.randn(K, WIDTH), torch.randn(VOCABULARY, WIDTH)
    targets, weights = torch.randint(VOCABULARY, (K,)), torch.ones(K) / K
    options = LossOptions(NUM_EXIT, 5)
    more = about(weights, 1, options)
    _, nll, stats = _HeadLoss.apply(options, h, embedding, targets, weights, more, h[:NUM_EXIT])
    torch.testing.assert_close(stats[0], torch.stack([nll[:NUM_EXIT].mean(), torch.tensor(1.0)]))


@pytest.mark.parametrize("candidates", [1, 3, 10])
def test_confidence_limit_is_the_gradient_of_coverage(candidates):
    nll = torch.tensor([1e-6, 0.01, 0.5, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    coverage = -torch.log1p(-((1 - torch.exp(-nll)) ** candidates)).sum()
    (wanted,) = torch.autograd.grad(coverage, nll)
    found = confidence_limit(nll.detach(), candidates)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    assert candidates == 1 or found[0] < 1e-4 < 0.999 < found[-1]
