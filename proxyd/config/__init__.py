"""Wishes: YAML text in, frozen values out. Pure."""
