"""``python run.py …`` is the same command as ``acf …``."""

from agentic_compression.cli.main import main

if __name__ == "__main__":
    main()
