"""Durable things. The only room that knows SQL.

db             the one read-write connection: group commit, waiting, healing
writer         its thread: one batch, one transaction
entry          a write that waits, and who waits for it
file           where the file is, whose it is, and which schema it has (migrations/)
ledger         a row for every attempt at an upstream
usage          reports out of it
reprice        its costs, written anew
idempotency    claims on keys, and the answers kept under them
known          which keys may stand in the file, without a look at it
keys           API keys, as hashes
conversations  conversations and their messages
upkeep         check, back up, prune, vacuum
"""
