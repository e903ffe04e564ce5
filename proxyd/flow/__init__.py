"""One exchange, in order: admit, dispatch, relay, settle.

handler     the order: the page to begin with
admit       who asks, for what, and may they
dispatch    which upstream answers; retries
relay       bytes pass
settle      what it came to: row, limits, log, metrics

What they carry:
exchange    what the four know together
answer      an upstream's answer as it arrives
watch       its timer: silence, pings
broadcast   an answer that outlives its client
packer      events into frames, and the timer around them
runtime     the Snapshot that a reload replaces, the Runtime that outlives it

What they ask (state; the decisions are in rules/):
keyring     keys of the database
bearers     signed tokens, and the keys of their issuers
brake       who guesses keys
allowances  what is used up under each limit
waiting     who waits for a place
budgets     what callers have spent
claims      who has an Idempotency-Key; running and ended streams
once        an Idempotency-Key where proxyd itself answers
memory      conversations of running exchanges
health      how an upstream is
probes      asking it
pricing     what an attempt costs
reprice     what history costs by today's prices
tally       sums for the live view
"""
