import numpy as np
import pytest

from harmony_diffusion.errors import InputError
from harmony_diffusion.reports.votes import Vote, bradley_terry, rank_votes, read_votes


def simulated(scores, votes, seed=0, voters=0):
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(votes):
        i, j = generator.choice(len(scores), 2, replace=False)
        chance = 1 / (1 + np.exp(scores[j] - scores[i]))
        voter = f"v{generator.integers(voters)}" if voters else ""
        drawn.append(Vote(f"m{i}", f"m{j}", float(generator.random() < chance), voter))
    return drawn


def test_two_methods_by_hand():
    votes = [Vote("a", "b", 1.0)] * 30 + [Vote("a", "b", 0.0)] * 10
    first, second = rank_votes(votes)
    # The odds are 30 : 10, so the scores are log 3 apart; the variance of that difference is 1/30 + 1/10.
    assert (first.method, second.method) == ("a", "b")
    assert first.score == pytest.approx(np.log(3) / 2) and second.score == pytest.approx(-np.log(3) / 2)
    assert first.high - first.low == pytest.approx(2 * 1.959964 * np.sqrt(1 / 30 + 1 / 10) / 2, rel=1e-6)
    assert (first.wins, first.votes) == (30, 40)


def test_three_methods_by_hand():
    # Strengths 4 : 2 : 1 make these wins exactly the expected ones, so they are the most likely strengths.
    wins = np.array([[0, 40, 48], [20, 0, 40], [12, 20, 0]])
    assert np.exp(bradley_terry(wins) - bradley_terry(wins)[2]) == pytest.approx([4, 2, 1])


def test_ties_count_half():
    ties = rank_votes([Vote("a", "b", 0.5)] * 8)
    assert [rank.score for rank in ties] == [0, 0] and [rank.wins for rank in ties] == [4, 4]


def test_score_solves_the_likelihood_equations():
    votes = simulated([1.0, 0.3, -0.2, -1.1], 500, seed=3)
    ranks = {rank.method: rank for rank in rank_votes(votes)}
    for name, rank in ranks.items():
        expected = 0.0
        for vote in votes:
            if name in (vote.first, vote.second):
                other = ranks[vote.second if vote.first == name else vote.first]
                expected += 1 / (1 + np.exp(other.score - rank.score))
        assert rank.wins == pytest.approx(expected, rel=1e-8)
    assert sum(rank.score for rank in ranks.values()) == pytest.approx(0)


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth = np.array([0.8, 0.1, -0.9])
    held = 0
    for seed in range(200):
        for rank in rank_votes(simulated(truth, 300, seed)):
            held += rank.low <= truth[int(rank.method[1])] <= rank.high
    assert 0.92 <= held / 600 <= 0.98


def test_independent_voters_change_the_intervals_little():
    votes = simulated([0.5, 0.0, -0.5], 3000, voters=100)
    by_voter = rank_votes(votes)
    alone = rank_votes([Vote(v.first, v.second, v.preference) for v in votes])
    for a, b in zip(by_voter, alone, strict=True):
        assert a.score == b.score
        assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.25)


def test_repeated_answers_of_one_voter_are_not_new_evidence():
    votes = [
        Vote(v.first, v.second, v.preference, f"v{i}") for i, v in enumerate(simulated([0.5, -0.5], 200))
    ]
    once, often = rank_votes(votes), rank_votes(votes * 9)
    assert often[0].high - often[0].low == pytest.approx(once[0].high - once[0].low, rel=1e-6)


def test_a_method_that_always_wins_has_no_score():
    with pytest.raises(InputError, match="infinitely far apart"):
        rank_votes([Vote("a", "b", 1.0), Vote("b", "c", 1.0), Vote("c", "b", 1.0)])
    with pytest.raises(InputError, match="infinitely far apart"):
        rank_votes([Vote("a", "b", 0.5), Vote("c", "d", 0.5)])
    with pytest.raises(InputError, match="confidence: is 95"):
        rank_votes([Vote("a", "b", 0.5)], confidence=95)
    with pytest.raises(InputError, match="votes: is empty"):
        rank_votes([])


def test_votes_are_read(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_bytes(b"\xef\xbb\xbffirst,second,winner,voter\r\na,b,a,x\r\na,b,tie,x\r\nb,a,a,\r\n")
    assert read_votes(path) == [Vote("a", "b", 1, "x"), Vote("a", "b", 0.5, "x"), Vote("b", "a", 0, "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first,winner\na,a\n", "lacks the columns second"),
        ("first,second,winner\na,a,a\n", ":2: is not a vote between two methods"),
        ("first,second,winner\na,b,c\n", ":2: the winner 'c' is neither"),
        ("first,second,winner\na,b\n", ":2: the winner '' is neither"),
    ],
)
def test_bad_votes_are_refused_with_their_place(tmp_path, text, message):
    path = tmp_path / "votes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_votes(path)
