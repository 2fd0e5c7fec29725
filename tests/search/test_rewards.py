import math

import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.search.rewards import REWARDS, reward_named


@pytest.mark.parametrize(
    ("name", "expected"),
    [("err", -8.0), ("flops", -8.0 * math.log(2e6)), ("params", -8.0 * math.log(5000))],
)
def test_rewards_are_those_of_the_paper(name, expected):
    assert reward_named(name)(92.0, 1_000_000, 5000) == pytest.approx(expected)


def test_every_row_prefers_less_error():
    assert all(reward(90.0, 100, 100) > reward(80.0, 100, 100) for reward in REWARDS.values())


def test_an_unknown_reward_lists_the_choices():
    with pytest.raises(UsageError, match="'speed'; expected one of err, flops, params"):
        reward_named("speed")
