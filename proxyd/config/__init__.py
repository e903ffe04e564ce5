"""Wishes: YAML text in, frozen values out. Pure, but for `load_file`, which reads the files that it is pointed at.

load       all of it, in order
tree       the text, with places
schema     what may be said
forms      the short ways to say it
read       tree + schema → values
units      durations, sizes, money; words that YAML readers disagree on
secrets    what the file leaves out: ${VAR}, files, credentials, .env
checks     what types cannot tell
issuers    the same, of issuers of tokens
address    where a listener stands
patterns   model names with a * at the end
zones      time zones, by name
safety     when not to start
not_built  what is planned, and refused until then
mistakes   what is wrong, and where
diff       what a reload changes
shape      the schema's types, unwrapped
editor     the JSON Schema of the file
"""
