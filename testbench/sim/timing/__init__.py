"""Tests of the model device."""
