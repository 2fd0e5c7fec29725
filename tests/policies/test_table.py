"""The table of policies: names, compositions, options that would do nothing."""

import numpy as np
import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.policies import Row, make_policy
from agmc_onnx.policies.agmc.options import AgmcOptions
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.policies.gnn_rl.options import GnnRlOptions
from agmc_onnx.policies.guide.guided import Guided, GuideOptions
from agmc_onnx.policies.guide.informed import InformedAgmc, InformedAgmcOptions
from agmc_onnx.policies.handcrafted import RandomPolicy
from agmc_onnx.policies.table import Table
from agmc_onnx.search.options import SearchOptions
from tests.policies.test_agmc import known_answer


def made(name, **options):
    return make_policy(known_answer(0, 4)[0], SearchOptions(name, 8, **options), np.random.default_rng(0))


def test_the_plain_name_of_a_searching_policy_is_guided_and_bare_is_without():
    guided, bare = made("agmc"), made("bare:agmc")
    assert isinstance(guided, Guided) and type(guided.policy) is InformedAgmc and type(bare) is AgmcPolicy
    assert isinstance(made("random"), RandomPolicy) and isinstance(made("guided:random").policy, RandomPolicy)


def test_a_name_is_listed_once_and_a_composition_is_known_by_its_row():
    table = Table()
    table.add("one", Row("module:make"))
    with pytest.raises(UsageError, match="a name listed twice, got 'one'"):
        table.add("one", Row("module:other"))
    assert "bare:one" in table and "guided:one" in table and "bare:other" not in table and "best:one" not in table
    assert table["guided:one"].guided and not table["bare:one"].guided


@pytest.mark.parametrize("name", ["best", "bare:best", "free:agmc"])
def test_an_unknown_name_lists_the_choices(name):
    with pytest.raises(
        UsageError, match=f"unknown name, got '{name}'; expected one of agmc, uniform.*bare: or guided:"
    ):
        made(name)


@pytest.mark.parametrize(
    ("name", "own", "wanted"),
    [
        ("agmc", AgmcOptions(tau=0.1), "InformedAgmcOptions"),  # no target networks there: tau would do nothing
        ("bare:agmc", InformedAgmcOptions(identity_size=4), "AgmcOptions"),
        ("bare:amc", AgmcOptions(encoder="diffpool"), "DdpgOptions"),
        ("gnn-rl", AgmcOptions(), "GnnRlOptions"),
        ("random", GnnRlOptions(), "none"),
    ],
)
def test_options_that_do_nothing_in_a_composition_are_refused(name, own, wanted):
    with pytest.raises(
        UsageError, match=f"these options do nothing for {name}, got {type(own).__name__}; expected {wanted}"
    ):
        made(name, own=own)


def test_options_of_a_guide_are_refused_where_there_is_none():
    with pytest.raises(
        UsageError, match=r"bare:agmc has no guide, got GuideOptions; expected none.* ask for guided:agmc"
    ):
        made("bare:agmc", guide=GuideOptions(generalist=False))
    assert made("guided:random", guide=GuideOptions(recombine=False)).options.recombine is False
