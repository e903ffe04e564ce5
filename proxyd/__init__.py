"""proxyd: the LLM gateway you run like nginx. Its rooms, in reading order; each one's `__init__.py` says what is in it.

model        the nouns
errors       what can go wrong, in one table
clock        the only reader of time
log          what the operator is told
line_writer  how the log's lines get out
metrics      what is counted
series       how it is kept and told, as Prometheus reads it

config       the YAML, as frozen values
rules        decisions: routes, auth, limits, retry, breaker, price
wire         bytes and their meaning
store        durable things; the only SQL
upstream     the provider side
flow         one exchange: admit, dispatch, relay, settle
web          the client side
daemon       the process: boot, run, reload, drain
cli          the commands
client       a small client, for other people's programs
"""

__version__ = "0.1.0"
