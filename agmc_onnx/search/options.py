"""What a search and its policy are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, whatever its policy.

    Attributes:
        policy: Row of `agmc_onnx.policies.POLICIES`, or `bare:` or `guided:` before one.
        n_episodes: Candidates evaluated; 400 (AGMC, sec. 4: 100 random, then 300). 0: those a policy takes as it is.
        n_decided: How many these are at most.
        own: Options of the policy itself, of the class that its row names (`policies.table.Row.options`); None: its defaults.
            Of another class they are refused: they would do nothing.
        guide: Options of the guide (`policies.guide.guided.GuideOptions`); refused where there is none.
    """

    policy: str = "agmc"
    n_episodes: int = 400
    n_decided: int = 1
    own: Any = None
    guide: Any = None
