import torch
from scipy import stats

from harmony_diffusion.data import keyed_random
from harmony_diffusion.data.keyed_random import KeyedDraws, generator_of, pixel_noise, sample_key


def keys(count):
    return torch.tensor([sample_key(1, 2, index) for index in range(count)])


def test_mixing_is_splitmix64():
    # The first outputs of the reference implementation for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [(1234567 + step * keyed_random._GOLDEN) & (2**64 - 1) for step in (1, 2, 3)]
    assert [keyed_random._mix_int(state) for state in states] == expected
    tensor = torch.tensor([keyed_random._signed(state) for state in states])
    assert [value % 2**64 for value in keyed_random._mix(tensor).tolist()] == expected


def test_keys_of_seed_epoch_and_index_do_not_meet():
    made = {sample_key(s, e, i) for s in range(10) for e in range(10) for i in range(100)}
    assert len(made) == 10_000
    assert all(0 <= key < 2**63 for key in made)


def test_a_draw_depends_on_its_key_and_name_alone():
    draws = KeyedDraws(keys(8))
    whole = draws.uniform("a", 3)
    assert torch.equal(draws[torch.tensor([5, 1])].uniform("a", 3), whole[[5, 1]])
    assert not torch.equal(draws.uniform("b", 3), whole)
    assert torch.equal(KeyedDraws(keys(8)).normal("n", 2)[3:4], KeyedDraws(keys(8)[3:4]).normal("n", 2))


def test_draws_are_distributed_as_they_say():
    draws = KeyedDraws(keys(4000))
    assert stats.kstest(draws.uniform("u", low=-2, high=3).numpy(), "uniform", (-2, 5)).pvalue > 0.01
    assert stats.kstest(draws.normal("n", std=2.0).numpy(), "norm", (0, 2)).pvalue > 0.01
    assert stats.pearsonr(draws.uniform("u").numpy(), draws.uniform("v").numpy()).pvalue > 0.01
    counts = draws.choice("c", (1.0, 0.0, 3.0)).bincount(minlength=3)
    assert counts[1] == 0 and abs(counts[2] / 4000 - 0.75) < 0.03
    assert abs(draws.chance("d", 0.2).mean() - 0.2) < 0.03


def test_pixel_noise_is_white_and_keyed():
    noise = pixel_noise(keys(3), "noise", (3, 64, 64), torch.device("cpu"))
    assert torch.equal(noise[1:2], pixel_noise(keys(3)[1:2], "noise", (3, 64, 64), torch.device("cpu")))
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    flat = noise[0].flatten()
    assert abs(torch.corrcoef(torch.stack((flat[1:], flat[:-1])))[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack((flat, noise[1].flatten())))[0, 1]) < 0.03


def test_numpy_generators_are_keyed():
    assert generator_of(3, "a").random() == generator_of(3, "a").random()
    assert len({generator_of(key, name).random() for key in (3, 4) for name in "ab"}) == 4
