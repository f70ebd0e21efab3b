"""Control: registers, command ring, dispatch, completions, counters."""
