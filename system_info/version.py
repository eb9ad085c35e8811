"""Version of this project, for its package, its reports and `config.json`."""

__version__ = "0.2.0"
