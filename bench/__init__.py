"""How fast the product's heart is, always beside a floor: a bare loop that does only the unavoidable work.

`python -m bench` measures every row, each in a process of its own; `python -m bench ROW …` those that are named.
`fires`, `pushes`, `timing`, `loading`, `memory` and `fleets` hold the rows. `servers` starts what is measured in a
process of its own, `floors` the bare loops in theirs; `fleet` is the load: the agent's own parts, many in one process.
"""
