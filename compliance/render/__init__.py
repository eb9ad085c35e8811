"""Renderers: pure functions from a `Report` to the text of one format. They open no file and know no rule."""
