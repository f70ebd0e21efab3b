"""The model device: golden numbers with modelled time."""
