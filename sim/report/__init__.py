"""Pictures and reports of what a simulation did."""
