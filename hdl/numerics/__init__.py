"""Number formats, tables and arithmetic units of the datapath."""
