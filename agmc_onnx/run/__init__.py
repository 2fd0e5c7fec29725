"""The stages of a run of `compress`: analysis, target, candidates and search, recovery of what was found."""
