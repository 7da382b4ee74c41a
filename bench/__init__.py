"""Benchmarks. Each figure stands beside a floor: a bare loop that does only the unavoidable work.

`python -m bench` measures every row in its own process, and `python -m bench ROW …` the named rows; `--json FILE` also
writes what they found, with the CPU time of server, load and PostgreSQL.

`fires`, `bounds`, `pushes`, `timing`, `loading`, `memory`, `fleets`, `lists`, `growing`, `replicas`, `scale` and
`controller` hold the rows.
`servers` and `postgresql` start what is measured, and `floors` the bare loops, in processes of their own. `load` is the
load: `hosts` in some processes, which speak through a `line` and answer with frames worked out beforehand, so that the
server is what is measured. `fleet` has real agents, each with the real service, core, cron and link.
"""
