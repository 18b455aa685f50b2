import multiprocessing

import torch
import torch.distributed as dist
from torch import nn

from harmony_diffusion.training.batch_norm import synchronize_batch_norms


def norm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1)).double()


def batch_of_four():
    return torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def half_a_batch(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network = norm_network()
    assert synchronize_batch_norms(network) == 1
    network(batch_of_four()[2 * rank : 2 * rank + 2]).square().mean().backward()
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
    if rank == 0:
        gradients = {key: value.grad / 2 for key, value in network.named_parameters()}
        torch.save((gradients, dict(network.named_buffers())), results)
    dist.destroy_process_group()


def test_synchronised_batch_norm_equals_one_process(tmp_path):
    network = norm_network()
    network(batch_of_four()).square().mean().backward()
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, tmp_path / "store", tmp_path / "results") for rank in range(2)]
    children = [context.Process(target=half_a_batch, args=args) for args in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    gradients, buffers = torch.load(tmp_path / "results", weights_only=True)
    for key, parameter in network.named_parameters():
        # The statistics are computed in float32, as the networks are.
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-6)
    for key, value in network.named_buffers():
        torch.testing.assert_close(buffers[key], value, rtol=1e-5, atol=1e-6)


def test_synchronised_batch_norm_keeps_keys_and_is_plain_in_one_process():
    plain, synced = norm_network(), norm_network()
    synchronize_batch_norms(synced)
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert torch.equal(plain(batch_of_four()), synced(batch_of_four()))
