"""What runs the hardware: golden model, simulators, benches and the command line."""
