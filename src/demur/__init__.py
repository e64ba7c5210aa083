"""Calibrate how a chat model says no."""
