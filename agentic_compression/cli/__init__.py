"""The ``acf`` command."""
