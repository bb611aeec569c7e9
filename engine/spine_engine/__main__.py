"""``python -m spine_engine`` is the command ``spine-engine``."""

from spine_engine.cli import main

if __name__ == "__main__":
    main()
