"""Durable things. The only room that knows SQL."""
