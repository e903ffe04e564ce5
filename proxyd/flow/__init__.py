"""One exchange, in order: admit, dispatch, relay, settle."""
