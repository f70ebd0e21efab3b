"""Tests of the native device and of the waves."""
