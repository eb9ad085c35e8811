"""Tests: `unit` (seconds), `integration` (gloo ranks), `gpu` (marked); `support` holds what they share."""
