"""Generators of the documentation's reference pages and pictures. Not part of the installed package."""
