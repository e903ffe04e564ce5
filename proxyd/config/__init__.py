"""Wishes: YAML text in, frozen values out. Pure, but for `load_file`, which reads the files that it is pointed at.

tree      the text, with places              secrets   what the file leaves out: ${VAR}, files, credentials
schema    what may be said                   forms     the short ways to say it
read      tree + schema → values             units     durations, sizes, words that YAML readers disagree on
checks    what types cannot tell             address   where a listener stands
issuers   the same, of tokens' issuers       patterns  model names with a * at the end
load      all of it, in order                safety    when not to start
mistakes  what is wrong, and where           not_built what is planned and refused until then
diff      what a reload changes              zones     time zones, by name
editor    the JSON Schema of the file        shape     the schema's types, unwrapped
"""
