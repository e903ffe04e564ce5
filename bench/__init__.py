"""The measuring programs: `python -m bench` drives the same work through nginx, a bare aiohttp relay and proxyd.

answers         what the mock upstream says, and how long it must be
bare            the aiohttp pass-through to compare with
children        child processes that cannot outlive the bench
contestants     starting and stopping each proxy
load            the load, a process of its own
loops           uvloop for the bench's own processes, where it is installed
mock            the upstream, a process of its own
proc            what a process tree costs, out of /proc
report          tables, and the targets
scenes          what is measured, in which order
install         what an installation weighs
verify          whether an answer is the right one (test_verify: the checks are shown to fail)

Programs of their own; `README.md` says what each is for:

auth            keys, limits and budgets, with 10,000 keys
jwt             a signed token, beside a key
ledger          the ledger's two rows
meter           counting one event
observe         metrics and the access line
once            Idempotency-Keys, replays, resumable streams
protobuf        a turn's bytes and a token's CPU in each form
thin            the same, through the whole daemon
start           from exec to the first answer
reload          a reload under streams
scrape          a scrape of many series under streams
cancel          how soon an upstream hears that a client left
idle            open, silent streams
slow            clients that are slow on purpose
memory          whether memory stays as it is
trouble         failing over, a slow disk
crash           kill -9 and power cuts, for long
fuzz            mutations through the whole daemon, for long
rooms           mutations guided by coverage, room by room
protobuf_rooms  those of them that know protobuf
crowd           the crowd of streams that cancel, idle and slow are about
vocab           makes the vocabularies in `proxyd/wire/vocab`
"""
