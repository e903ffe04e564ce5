"""Decisions: (state, facts, now) in, verdict out. Pure: no clock, no chance, no I/O.

auth         who calls, by a static key; how keys are made
bearer       who calls, by a signed token (JWT)
new_key      what an owner may wish of a new key
routes       which upstreams a model name means, and in which order they are tried
ratelimit    how much may pass in a minute, and at once
reservation  how much an answer may come to, before it is there
quota        how much may be used up in a day or a month
idempotency  what a second request under the same key gets
retry        whom to try next, after which wait, or whether to give up
breaker      when an upstream in trouble is left alone
price        what tokens cost
pricelist    what providers charge, where the file does not say
cors         which web pages may read answers
"""
