"""Real software: what it keeps of its promises when it is killed, and when the power is cut.

What is known of each, with its explanation, is in `known.toml`; `python -m scenarios.software` runs it all and writes
`docs/known-software.md`.
"""

#: the models under which the table is made, besides `kill`
POWER = ("ext4", "xfs", "btrfs", "posix")


def power(*guarantees: str) -> dict[str, list[str]]:
    """For `expect`: what each of those power cuts breaks."""
    return {model: list(guarantees) for model in POWER}
