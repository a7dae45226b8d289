"""Launchers of the C++ core for the inverse of a masked autoregressive layer."""
