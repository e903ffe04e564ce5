"""The measuring programs: `python -m bench` drives the same work through nginx, a bare aiohttp relay and proxyd.

answers   what the mock upstream says, and how long it must be     mock     the upstream, a process of its own
bare      the aiohttp pass-through to compare with                 load     the load, a process of its own
proc      CPU and memory of a process tree, out of /proc           contestants  starting and stopping each proxy
scenes    what is measured, in which order                         report   tables, targets
"""
