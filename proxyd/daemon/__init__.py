"""The process: boot, run, reload."""
