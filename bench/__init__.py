"""Benchmarks. Each figure stands beside a floor: a bare loop that does only the unavoidable work.

`python -m bench` measures every row in its own process; `python -m bench ROW …` measures the named rows.
`fires`, `pushes`, `timing`, `loading`, `memory` and `fleets` hold the rows. `servers` starts what is measured, and
`floors` the bare loops, in processes of their own. `fleet` is the load: many real agents in one process.
"""
