"""proxyd: the LLM gateway you run like nginx. Its rooms, in reading order.

model     the nouns                         errors    what can go wrong, in one table
config    the YAML, as frozen values        rules     decisions: routes, auth, retry, breaker
wire      bytes and their meaning           store     durable things; the only SQL
upstream  the provider side                 flow      one exchange: admit, dispatch, relay, settle
web       the client side                   daemon    boot, run
cli       the commands
"""

__version__ = "0.1.0"
