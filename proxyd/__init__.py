"""proxyd: the LLM gateway you run like nginx. Its rooms, in reading order; each one's `__init__.py` says what is in it.

model     the nouns                         errors    what can go wrong, in one table
config    the YAML, as frozen values        rules     decisions: routes, auth, retry, breaker
wire      bytes and their meaning           store     durable things; the only SQL
upstream  the provider side                 flow      one exchange: admit, dispatch, relay, settle
web       the client side                   daemon    boot, run, reload
cli       the commands                      client    a small client for Python programs
log  line_writer  metrics  clock            what is told, and what time it is
"""

__version__ = "0.1.0"
